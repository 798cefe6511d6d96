//! What a trace asks of the inside of a layer: rows that the machine has, and what is computed aside from them on the
//! host, as the definitions say it (`ops/plain`). Slow, and for traces alone.
//!
//! Not by the definitions themselves: burn's operations on the model's device would come between a machine's records, and
//! may be tuned to fewer bits.

use super::block::Block;
use super::tracing::{Inside, Tracing};
use crate::device::DeviceFailed;
use crate::ops::machine::{Heads, Machine, Norm, Values};
use crate::ops::plain::rope::cos_sin;
use crate::ops::{MachineError, Visibility};
use crate::run::TracedTensor;

type Detail = (&'static str, TracedTensor);

/// The steps inside of a layer, by name.
pub(super) fn of_layer<M: Machine>(
    m: &M,
    x: &M::Stream<'_>,
    block: &Block<M>,
    trace: &Tracing<'_>,
    seen: Vec<(Inside, Values)>,
) -> Result<Vec<Detail>, MachineError> {
    let mut found = Vec::with_capacity(seen.len());
    for (place, values) in seen {
        found.push((place, values.wait()?));
    }
    let at = |place| {
        let value = found.iter().find(|(at, _)| *at == place).map(|(_, values)| values.clone());
        value.ok_or(MachineError::Bug { what: "a place inside of a layer was not seen" })
    };
    let (tokens, heads) = (trace.tokens(), &block.heads);
    let flat = |values: Vec<f32>| {
        let shape = vec![tokens, values.len() / tokens.max(1)];
        TracedTensor { shape, values }
    };
    let normed = |values, norm| normalized(m, values, norm);

    let [q, k, v] = columns(&at(Inside::Projected)?, tokens, heads);
    let positions = || trace.sequences.iter().flat_map(|sequence| sequence.positions.clone());
    let angles = Angles::of(m, positions(), heads)?;
    let queries = Turned::of(m, &q, &heads.q_norm, &angles)?;
    let keys = Turned::of(m, &k, &heads.k_norm, &angles)?;
    let attended = at(Inside::Attended)?;
    let o_proj = m.multiply(&attended, &block.o_proj)?;
    let mlp = m.multiply(&at(Inside::Gated)?, &block.down_proj)?;

    let mut details: Vec<Detail> = vec![
        ("input_layernorm", flat(normed(at(Inside::BeforeAttention)?, &block.input_layernorm)?)),
        ("q_proj", flat(q)),
        ("k_proj", flat(k)),
        ("v_proj", flat(v)),
        ("q_norm", by_head(&queries.normed, tokens, heads.heads)),
        ("k_norm", by_head(&keys.normed, tokens, heads.kv_heads)),
        ("q_rope", by_head(&queries.turned, tokens, heads.heads)),
        ("k_rope", by_head(&keys.turned, tokens, heads.kv_heads)),
        ("attention", flat(attended)),
        ("o_proj", flat(o_proj.clone())),
        ("post_attention_layernorm", flat(normed(o_proj, &block.post_attention_layernorm)?)),
        (
            "pre_feedforward_layernorm",
            flat(normed(at(Inside::BeforeFeedForward)?, &block.pre_feedforward_layernorm)?),
        ),
        ("mlp", flat(mlp.clone())),
        ("post_feedforward_layernorm", flat(normed(mlp, &block.post_feedforward_layernorm)?)),
    ];
    if let Some((index, sequence)) = trace.sequences.iter().enumerate().next_back() {
        let visibility = sequence.visibility(heads.kind);
        let cached = m.keys(x, index, heads.layer, visibility.keys())?;
        let own = queries.turned.len() - sequence.positions.len() * heads.query_width();
        details.push(("probs", probabilities(&queries.turned[own..], &cached, heads, &visibility)));
    }
    Ok(details)
}

/// `norm` of rows: `x * rsqrt(mean(x²) + eps) * scale`.
pub(super) fn normalized<M: Machine>(
    m: &M,
    mut rows: Vec<f32>,
    norm: &Norm<M::Vector>,
) -> Result<Vec<f32>, DeviceFailed> {
    let scale = m.vector_values(&norm.scale)?;
    for row in rows.chunks_exact_mut(scale.len().max(1)) {
        let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
        let inverse_rms = (squares / scale.len() as f64 + f64::from(norm.eps)).sqrt().recip();
        for (x, scale) in row.iter_mut().zip(&scale) {
            *x = (f64::from(*x) * inverse_rms) as f32 * scale;
        }
    }
    Ok(rows)
}

/// Queries, keys and values, which lie side by side in each row.
fn columns<V>(qkv: &[f32], tokens: usize, heads: &Heads<V>) -> [Vec<f32>; 3] {
    let (query, key) = (heads.query_width(), heads.key_width());
    let mut parts = [query, key, key].map(|width| Vec::with_capacity(tokens * width));
    for row in qkv.chunks_exact(query + 2 * key) {
        let (q, rest) = row.split_at(query);
        let (k, v) = rest.split_at(key);
        for (part, columns) in parts.iter_mut().zip([q, k, v]) {
            part.extend_from_slice(columns);
        }
    }
    parts
}

/// Cosines and sines of the tokens, each \[tokens, head_dim / 2\].
struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Angles {
    fn of<M: Machine>(
        m: &M,
        positions: impl Iterator<Item = usize>,
        heads: &Heads<M::Vector>,
    ) -> Result<Self, MachineError> {
        let inv_freq = m.vector_values(&heads.inv_freq)?;
        let (cos, sin) = cos_sin(positions, &inv_freq);
        Ok(Self { cos, sin, half: inv_freq.len() })
    }
}

/// Heads after their norm, and after rope: \[tokens, heads * head_dim\].
struct Turned {
    normed: Vec<f32>,
    turned: Vec<f32>,
}

impl Turned {
    fn of<M: Machine>(
        m: &M,
        rows: &[f32],
        norm: &Norm<M::Vector>,
        Angles { cos, sin, half }: &Angles,
    ) -> Result<Self, MachineError> {
        let normed = normalized(m, rows.to_vec(), norm)?;
        let mut turned = normed.clone();
        let width = normed.len() / (cos.len() / half.max(&1)).max(1);
        let tokens =
            turned.chunks_exact_mut(width.max(1)).zip(cos.chunks_exact(*half).zip(sin.chunks_exact(*half)));
        for (token, (cos, sin)) in tokens {
            for head in token.chunks_exact_mut(2 * half) {
                let (first, second) = head.split_at_mut(*half);
                for (((x, y), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
                }
            }
        }
        Ok(Self { normed, turned })
    }
}

/// \[tokens, heads * head_dim\] as \[heads, tokens, head_dim\].
fn by_head(rows: &[f32], tokens: usize, heads: usize) -> TracedTensor {
    let head_dim = rows.len() / (tokens * heads).max(1);
    let mut values = Vec::with_capacity(rows.len());
    for head in 0..heads {
        for row in rows.chunks_exact(heads * head_dim) {
            values.extend_from_slice(&row[head * head_dim..][..head_dim]);
        }
    }
    TracedTensor { shape: vec![heads, tokens, head_dim], values }
}

/// What attention weighs the values with, \[heads, tokens, keys\], of the turned queries of one sequence and the keys that
/// they see, \[kv_heads, keys, head_dim\].
fn probabilities<V>(
    queries: &[f32],
    keys: &[f32],
    heads: &Heads<V>,
    visibility: &Visibility,
) -> TracedTensor {
    let (head_dim, all_keys) = (heads.head_dim, visibility.keys());
    let tokens = visibility.queries();
    let mut values = Vec::with_capacity(heads.heads * tokens.len() * all_keys.len());
    for head in 0..heads.heads {
        let kv_head = head / (heads.heads / heads.kv_heads).max(1);
        for (row, position) in tokens.clone().enumerate() {
            let query = &queries[(row * heads.heads + head) * head_dim..][..head_dim];
            let visible = visibility.of(position);
            let score = |key: usize| {
                let entry = &keys[(kv_head * all_keys.len() + key - all_keys.start) * head_dim..][..head_dim];
                let products = query.iter().zip(entry).map(|(q, k)| f64::from(*q) * f64::from(*k));
                products.sum::<f64>() * f64::from(heads.query_factor)
            };
            let scores: Vec<f64> = visible.clone().map(score).collect();
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            values.extend(all_keys.clone().map(|key| match visible.contains(&key) {
                true => (weights[key - visible.start] / sum) as f32,
                false => 0.0,
            }));
        }
    }
    TracedTensor { shape: vec![heads.heads, tokens.len(), all_keys.len()], values }
}

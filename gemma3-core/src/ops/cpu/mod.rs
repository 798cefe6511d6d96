//! [`DecoderOps`] for burn's CPU backend flex: rows over the threads of the current rayon pool,
//! SIMD chosen at run time by `pulp`.
//!
//! Every function receives f32 tensors ([`crate::ops`] checked that) and makes its inputs contiguous
//! first; the weights always are, so that costs nothing where it matters.

mod attention;
mod bias_gelu;
mod cached_attention;
mod exp;
mod gelu_mul;
mod layer_norm;
mod norm_rope;
pub(crate) mod packed;
mod product;
mod rms_norm;

use std::borrow::Cow;
use std::ops::Range;

use burn::backend::Flex;
use burn::tensor::{DType, Element, Shape};
use burn_flex::FlexTensor;
use half::{bf16, f16};

use super::extension::{CachedAttention, DecoderOps, NormRope, PackedProducts};
use cached_attention::{CacheElement, KeysAndValues, Queries, write_rows};
use packed::{Activations, multiply_each, multiply_gated};
use pulp::bytemuck::Pod;

/// Rows of a product that are done together. Each piece of weights meets all of them, so that they should stay
/// in the last-level cache: 512 of the widest activations here (15,360 in the 12B) are 31 MB, of the image
/// encoder's 9 MB.
const MAX_ROWS_AT_ONCE: usize = 512;

/// So many rows of one sequence, or more, are computed alike: each as it would be among any others. Fewer go to
/// kernels that round otherwise.
pub(crate) const ALIKE_ROWS: usize = cached_attention::MAX_FEW_ROWS + 1;
const _: () = assert!(ALIKE_ROWS > packed::FEW_ROWS && MAX_ROWS_AT_ONCE >= 2 * ALIKE_ROWS);

impl DecoderOps for Flex {
    fn packed_linear(x: FlexTensor, products: PackedProducts) -> FlexTensor {
        let [rows, in_features] = dims(&x);
        let x = x.to_contiguous();
        linear(rows, in_features, &products, |start, end| {
            Cow::Borrowed(&values(&x)[start * in_features..end * in_features])
        })
    }

    fn packed_norm_linear(
        x: FlexTensor,
        scale: FlexTensor,
        eps: f32,
        products: PackedProducts,
    ) -> FlexTensor {
        let [rows, in_features] = dims(&x);
        let (x, scale) = (x.to_contiguous(), scale.to_contiguous());
        linear(rows, in_features, &products, |start, end| {
            Cow::Owned(normed(&values(&x)[start * in_features..end * in_features], values(&scale), eps))
        })
    }

    fn packed_gated_linear(
        x: FlexTensor,
        scale: FlexTensor,
        eps: f32,
        PackedProducts { weights, precision }: PackedProducts,
    ) -> FlexTensor {
        let [rows, in_features] = dims(&x);
        let (x, scale) = (x.to_contiguous(), scale.to_contiguous());
        let [gate, up] = &weights[..] else { unreachable!("a gate and what it gates") };
        let width = gate.out_features();
        let mut out = zeros(rows, width);
        let all: &mut [f32] = out.storage_mut();
        for Range { start, end } in rows_at_once(rows) {
            let x = normed(&values(&x)[start * in_features..end * in_features], values(&scale), eps);
            let activations = Activations::new(&x, end - start, in_features, precision);
            multiply_gated(&activations, gate, up, &mut all[start * width..end * width]);
        }
        out
    }

    fn packed_linear_norm_add(
        x: FlexTensor,
        products: PackedProducts,
        scale: FlexTensor,
        eps: f32,
        residual: FlexTensor,
    ) -> FlexTensor {
        let mut out = Self::packed_linear(x, products);
        let (scale, residual) = (scale.to_contiguous(), residual.to_contiguous());
        rms_norm::rms_norm_add(out.storage_mut(), values(&scale), values(&residual), eps);
        out.reshape(residual.layout().shape().clone())
    }

    fn rms_norm(x: FlexTensor, scale: FlexTensor, eps: f32) -> FlexTensor {
        let [rows, width] = dims(&x);
        let (x, scale) = (x.to_contiguous(), scale.to_contiguous());
        let mut out = zeros(rows, width);
        rms_norm::rms_norm(values(&x), values(&scale), out.storage_mut(), eps);
        out
    }

    fn gelu_mul(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        let [rows, width] = dims(&gate);
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        let mut out = zeros(rows, width);
        gelu_mul::gelu_mul(values(&gate), values(&up), out.storage_mut());
        out
    }

    fn layer_norm(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, eps: f32) -> FlexTensor {
        let [rows, width] = dims(&x);
        let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
        let mut out = zeros(rows, width);
        layer_norm::layer_norm(values(&x), values(&weight), values(&bias), out.storage_mut(), eps);
        out
    }

    fn bias_gelu(x: FlexTensor, bias: FlexTensor) -> FlexTensor {
        let (mut x, bias) = (owned(x), bias.to_contiguous());
        bias_gelu::bias_gelu(x.storage_mut(), values(&bias));
        x
    }

    fn attention(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        heads: usize,
        sequences: usize,
        scale: f32,
    ) -> FlexTensor {
        let [rows, width] = dims(&q);
        let sizes = attention::Sizes { sequences, heads, tokens: rows / sequences, width };
        let (q, k, v) = (q.to_contiguous(), k.to_contiguous(), v.to_contiguous());
        let mut out = zeros(rows, width);
        attention::attention(values(&q), values(&k), values(&v), out.storage_mut(), sizes, scale);
        out
    }

    fn norm_rope(
        x: FlexTensor,
        scale: FlexTensor,
        cos: FlexTensor,
        sin: FlexTensor,
        sizes: NormRope,
    ) -> FlexTensor {
        let [_, width] = dims(&x);
        let (mut x, scale) = (owned(x), scale.to_contiguous());
        let (cos, sin) = (cos.to_contiguous(), sin.to_contiguous());
        let NormRope { eps, factor } = sizes;
        let heads = width / values(&scale).len();
        norm_rope::norm_rope(x.storage_mut(), values(&scale), eps, values(&cos), values(&sin), heads, factor);
        x
    }

    fn write_cache(mut cache: FlexTensor, rows: FlexTensor, position: usize) -> FlexTensor {
        let rows = rows.to_contiguous();
        let [kv_heads, slots, head_dim] = cache_sizes(&cache);
        let rows = values(&rows);
        match cache.dtype() {
            DType::BF16 => {
                write_rows(rows, cache.storage_mut::<bf16>(), kv_heads, slots, head_dim, position);
            }
            DType::F16 => write_rows(rows, cache.storage_mut::<f16>(), kv_heads, slots, head_dim, position),
            DType::F32 => write_rows(rows, cache.storage_mut::<f32>(), kv_heads, slots, head_dim, position),
            other => unreachable!("{NO_CACHE} of {other:?}"),
        }
        cache
    }

    fn cached_attention(
        q: FlexTensor,
        keys: FlexTensor,
        cached_values: FlexTensor,
        over: CachedAttention,
    ) -> FlexTensor {
        let [rows, width] = dims(&q);
        let q = q.to_contiguous();
        let mut out = zeros(rows, width);
        match keys.dtype() {
            DType::BF16 => attend::<bf16>(&q, &keys, &cached_values, &mut out, &over),
            DType::F16 => attend::<f16>(&q, &keys, &cached_values, &mut out, &over),
            DType::F32 => attend::<f32>(&q, &keys, &cached_values, &mut out, &over),
            other => unreachable!("{NO_CACHE} of {other:?}"),
        }
        out
    }
}

/// Attention over caches of one dtype.
fn attend<E: CacheElement + Element + Pod>(
    q: &FlexTensor,
    keys: &FlexTensor,
    cached_values: &FlexTensor,
    out: &mut FlexTensor,
    over: &CachedAttention,
) {
    let (keys_data, values_data) = (keys.to_contiguous(), cached_values.to_contiguous());
    let [kv_heads, slots, head_dim] = cache_sizes(keys);
    let queries = Queries {
        values: values(q),
        heads: over.heads,
        position: over.visibility.queries().start,
        visible: over.visibility.visible_keys(),
    };
    let cache = KeysAndValues {
        keys: keys_data.as_slice::<E>().expect(ONE_DTYPE),
        values: values_data.as_slice::<E>().expect(ONE_DTYPE),
        kv_heads,
        slots,
        head_dim,
    };
    cached_attention::attend(queries, cache, out.storage_mut());
}

/// Divides rows evenly, so that the last are not so few that they would be rounded otherwise.
fn rows_at_once(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let times = rows.div_ceil(MAX_ROWS_AT_ONCE).max(1);
    (0..times).map(move |n| n * rows / times..(n + 1) * rows / times)
}

/// Products of rows with each of the weights, one \[rows, out\] after the other; `x` gives some of the rows.
fn linear<'a>(
    rows: usize,
    in_features: usize,
    products: &PackedProducts,
    x: impl Fn(usize, usize) -> Cow<'a, [f32]>,
) -> FlexTensor {
    let outputs: usize = products.weights.iter().map(|weight| weight.out_features()).sum();
    let mut out = FlexTensor::zeros(Shape::new([rows * outputs]), DType::F32);
    let mut rest: &mut [f32] = out.storage_mut();
    let mut outs = Vec::with_capacity(products.weights.len());
    for weight in &products.weights {
        let (out, tail) = rest.split_at_mut(rows * weight.out_features());
        outs.push(out);
        rest = tail;
    }
    for Range { start, end } in rows_at_once(rows) {
        let x = x(start, end);
        let activations = Activations::new(&x, end - start, in_features, products.precision);
        let outs = products.weights.iter().zip(&mut outs).map(|(weight, out)| {
            let width = weight.out_features();
            (&**weight, &mut out[start * width..end * width])
        });
        multiply_each(&activations, outs);
    }
    out
}

/// Normalized rows.
fn normed(x: &[f32], scale: &[f32], eps: f32) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    rms_norm::rms_norm(x, scale, &mut out, eps);
    out
}

/// Rows and columns of a matrix.
fn dims(tensor: &FlexTensor) -> [usize; 2] {
    let shape = tensor.layout().shape();
    [shape[0], shape[1]]
}

/// Heads, slots and width of a head of a cache.
fn cache_sizes(cache: &FlexTensor) -> [usize; 3] {
    let shape = cache.layout().shape();
    [shape[0], shape[1], shape[2]]
}

/// Why caches have a dtype that is known here: [`super::reads_cache`] lets no other come.
const NO_CACHE: &str = "no implementation for a cache";
/// The same, of both halves of a cache.
const ONE_DTYPE: &str = "keys and values of one dtype, contiguous";

/// The elements of a contiguous tensor, which may be a window into a larger buffer.
fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("f32, as the module says, and contiguous, as every function here makes it")
}

/// The tensor with a buffer of just its elements, to be written.
fn owned(tensor: FlexTensor) -> FlexTensor {
    let tensor = {
        let given = tensor;
        given.to_contiguous() // `given` is dropped here, so that the buffer is not shared with it.
    };
    let elements = values(&tensor);
    if elements.len() == tensor.storage::<f32>().len() {
        return tensor;
    }
    // A contiguous tensor may still be a window into a larger buffer.
    let mut copy = FlexTensor::zeros(tensor.layout().shape().clone(), DType::F32);
    copy.storage_mut().copy_from_slice(elements);
    copy
}

fn zeros(rows: usize, columns: usize) -> FlexTensor {
    FlexTensor::zeros(Shape::new([rows, columns]), DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_divided_without_a_small_rest() {
        let lens = |rows| rows_at_once(rows).map(|part| part.len()).collect::<Vec<_>>();
        assert_eq!(lens(512), [512]);
        assert_eq!(lens(513), [256, 257]);
        assert_eq!(lens(1025), [341, 342, 342]);
        assert_eq!(lens(0), [0]);
        assert_eq!(rows_at_once(1025).last(), Some(683..1025));
    }
}

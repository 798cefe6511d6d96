use cubecl::client::Client;
use cubecl::prelude::*;

use super::*;
use crate::ops::cube::matvec::Machine;
use crate::ops::cube::reduce::Groups;
use crate::ops::cube::testing::*;

const EPS: f32 = 1e-6;
const FORMATS: [CacheFormat; 3] = [CacheFormat::F32, CacheFormat::F16, CacheFormat::BF16];

fn rounded(x: f64, format: CacheFormat) -> f64 {
    match format {
        CacheFormat::F32 => f64::from(x as f32),
        CacheFormat::F16 => half::f16::from_f64(x).to_f64(),
        CacheFormat::BF16 => half::bf16::from_f64(x).to_f64(),
    }
}

/// How far apart neighbors of a format are, relative to their size.
fn step(format: CacheFormat) -> f64 {
    match format {
        CacheFormat::F32 => 2.0_f64.powi(-23),
        CacheFormat::F16 => 2.0_f64.powi(-10),
        CacheFormat::BF16 => 2.0_f64.powi(-7),
    }
}

/// The numbers of a cache as words, and back.
fn pack(values: &[f64], format: CacheFormat) -> Vec<u32> {
    match format {
        CacheFormat::F32 => values.iter().map(|x| (*x as f32).to_bits()).collect(),
        CacheFormat::F16 => pairs(values, |x| half::f16::from_f64(x).to_bits()),
        CacheFormat::BF16 => pairs(values, |x| half::bf16::from_f64(x).to_bits()),
    }
}

fn pairs(values: &[f64], bits: impl Fn(f64) -> u16) -> Vec<u32> {
    values.chunks_exact(2).map(|pair| u32::from(bits(pair[0])) | u32::from(bits(pair[1])) << 16).collect()
}

fn unpack(words: &[u32], format: CacheFormat) -> Vec<f32> {
    match format {
        CacheFormat::F32 => words.iter().map(|word| f32::from_bits(*word)).collect(),
        CacheFormat::F16 => halves(words).map(|bits| half::f16::from_bits(bits).to_f32()).collect(),
        CacheFormat::BF16 => halves(words).map(|bits| half::bf16::from_bits(bits).to_f32()).collect(),
    }
}

fn halves(words: &[u32]) -> impl Iterator<Item = u16> {
    words.iter().flat_map(|word| [*word as u16, (word >> 16) as u16])
}

fn one_plane(client: &Client) -> Groups {
    Machine::of(client).groups(1)
}

/// Turns a head by the angles of a position.
fn rotate(head: &[f64], position: u32, inv_freq: &[f32]) -> Vec<f64> {
    let half = head.len() / 2;
    let mut out = head.to_vec();
    for j in 0..half {
        // The angle is rounded to f32, as the reference does.
        let (sin, cos) = f64::from(position as f32 * inv_freq[j]).sin_cos();
        out[j] = head[j] * cos - head[j + half] * sin;
        out[j + half] = head[j + half] * cos + head[j] * sin;
    }
    out
}

#[test]
fn heads_are_normalized_turned_and_cached_at_a_position_on_the_device() {
    let Some(client) = client() else { return };
    // 12 quads in the second case: units have no equal shares.
    for (heads, kv_heads, head_dim) in [(4, 1, 32), (2, 2, 48)] {
        for format in FORMATS {
            let cache = CacheLayout { sequences: 2, kv_heads, slots: 5, head_dim, format };
            let positions = [13_u32, 90_001];
            let mut random = Random::new(20);
            let width = (heads + 2 * kv_heads) * head_dim;
            let qkv = random.floats(2 * width);
            let (q_scale, k_scale) = (random.floats(head_dim), random.floats(head_dim));
            let inv_freq: Vec<f32> =
                (0..head_dim / 2).map(|j| 1e4_f32.powf(-2.0 * j as f32 / head_dim as f32)).collect();
            let mark = vec![0x7f00_7f00_u32; cache.bytes() / 4];
            let [keys, values] = [(); 2].map(|()| client.create_from_slice(u32::as_bytes(&mark)));
            let queries = poisoned(&client, 2 * heads * head_dim);
            let step_of = Heads {
                qkv: &upload(&client, &qkv),
                q_scale: &upload(&client, &q_scale),
                k_scale: &upload(&client, &k_scale),
                inv_freq: &upload(&client, &inv_freq),
                positions: &client.create_from_slice(u32::as_bytes(&positions)),
                queries: &queries,
                keys: &keys,
                values: &values,
                query_factor: 0.25,
                eps: EPS,
            };
            norm_rope_cache(&client, step_of, heads, cache, one_plane(&client));

            let mut expected_queries = Vec::new();
            let mut expected_cache = [unpack(&mark, format), unpack(&mark, format)];
            for (sequence, qkv) in qkv.chunks_exact(width).enumerate() {
                let position = positions[sequence];
                let all: Vec<&[f32]> = qkv.chunks_exact(head_dim).collect();
                for head in &all[..heads] {
                    let normed = rms_norm(&to_f64(head), &q_scale, f64::from(EPS));
                    let turned = rotate(&normed, position, &inv_freq);
                    expected_queries.extend(turned.iter().map(|x| (0.25 * x, 1.0)));
                }
                for kv_head in 0..kv_heads {
                    let normed = rms_norm(&to_f64(all[heads + kv_head]), &k_scale, f64::from(EPS));
                    let key = rotate(&normed, position, &inv_freq);
                    let value = to_f64(all[heads + kv_heads + kv_head]);
                    for (part, vector) in [key, value].into_iter().enumerate() {
                        let slot = position as usize % cache.slots;
                        let at = (sequence * kv_heads + kv_head) * cache.slots + slot;
                        for (cell, x) in expected_cache[part][at * head_dim..].iter_mut().zip(vector) {
                            *cell = rounded(x, format) as f32;
                        }
                    }
                }
            }
            assert_close(&download(&client, &queries), &expected_queries, 2e-6, "queries");
            let found = [keys, values].map(|part| {
                let words = client.read_one_unchecked(part);
                unpack(u32::from_bytes(&words), format)
            });
            for (found, expected) in found.iter().flatten().zip(expected_cache.iter().flatten()) {
                // An error of some 2^-22 in f32 may carry a number to the neighbor. What isn't written stays.
                let bound = 2e-6 + step(format) * f64::from(expected.abs());
                let same = found.to_bits() == expected.to_bits();
                let error = f64::from((found - expected).abs());
                assert!(
                    same || error <= bound && expected.abs() < 1e3,
                    "{format:?}: {found}, not {expected}"
                );
            }
        }
    }
}

#[test]
fn a_token_attends_to_the_positions_it_sees() {
    let Some(client) = client() else { return };
    let groups = one_plane(&client);
    let (sequences, head_dim) = (2, 48);
    for (heads, kv_heads, slots, window) in [(4, 1, 64, None), (4, 2, 40, Some(24)), (2, 2, 30, Some(30))] {
        for (format, splits, keys_at_once) in
            [(CacheFormat::F32, 3, 1), (CacheFormat::BF16, 4, 2), (CacheFormat::F16, 1, 3)]
        {
            let cache = CacheLayout { sequences, kv_heads, slots, head_dim, format };
            let attention = DecodeAttention { cache, heads, window, splits, keys_at_once, groups };
            let mut random = Random::new(21);
            let queries = random.floats(sequences * heads * head_dim);
            let mut entries = || -> Vec<f64> {
                (0..cache.quads() * 4).map(|_| rounded(f64::from(random.unit()), format)).collect()
            };
            let cached = [entries(), entries()];
            // The very first position, few, and one whose ring has come round (where it may).
            for positions in [[0_u32, 1], [5, 29], [if window.is_some() { 77 } else { 63 }, 38]] {
                let out = poisoned(&client, sequences * heads * head_dim);
                let buffers = DecodeBuffers {
                    queries: &upload(&client, &queries),
                    keys: &client.create_from_slice(u32::as_bytes(&pack(&cached[0], format))),
                    values: &client.create_from_slice(u32::as_bytes(&pack(&cached[1], format))),
                    positions: &client.create_from_slice(u32::as_bytes(&positions)),
                    partial: &poisoned(&client, attention.partial_floats()),
                    statistics: &poisoned(&client, attention.statistic_floats()),
                    out: &out,
                };
                decode_attention(&client, attention, buffers);
                let expected = reference(&queries, &cached, &positions, &attention);
                // Weights differ by the rounding of scores up to 10 or so; the values are below 1.
                let what = format!("{positions:?} {attention:?}");
                assert_close(&download(&client, &out), &expected, 5e-6, &what);
            }
        }
    }
}

fn reference(
    queries: &[f32],
    cache: &[Vec<f64>; 2],
    positions: &[u32],
    attention: &DecodeAttention,
) -> Vec<(f64, f64)> {
    let CacheLayout { kv_heads, slots, head_dim, .. } = attention.cache;
    let mut out = Vec::new();
    for (sequence, position) in positions.iter().enumerate() {
        let end = *position as usize + 1;
        let first = end.saturating_sub(attention.window.unwrap_or(end));
        for head in 0..attention.heads {
            let kv_head = head / (attention.heads / kv_heads);
            let query = &queries[(sequence * attention.heads + head) * head_dim..][..head_dim];
            let vector = |part: usize, key: usize| {
                let at = (sequence * kv_heads + kv_head) * slots + key % slots;
                &cache[part][at * head_dim..][..head_dim]
            };
            let score = |key| vector(0, key).iter().zip(query).map(|(k, q)| k * f64::from(*q)).sum::<f64>();
            let weights: Vec<f64> = (first..end).map(|key| score(key).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for d in 0..head_dim {
                let weighted = (first..end).zip(&weights).map(|(key, weight)| weight * vector(1, key)[d]);
                out.push((weighted.sum::<f64>() / sum, 1.0));
            }
        }
    }
    out
}

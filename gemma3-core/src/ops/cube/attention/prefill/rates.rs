//! What a layer's attention takes, to choose divisions by; no test of anything else.
//!
//! `cargo test -p gemma3-core --features vulkan --lib prefill::rates -- --ignored --nocapture --test-threads 1`, or with
//! `cuda`. `GEMMA3_RATES`, words with commas between them, leaves those lines away that lack one of them: `4B,2048`.

use std::time::Instant;

use cubecl::client::Client;
use cubecl::future::block_on;

use super::super::{FullAttention, FullBuffers, full_attention};
use super::tests::{upload_cache, upload_words};
use super::*;
use crate::ops::cube::gemm::{Cells, write_rows};
use crate::ops::cube::matvec::{Hardware, Input};
use crate::ops::cube::testing::*;

/// Seconds of one launch in the best of some rounds.
fn best_s(client: &Client, launch: impl Fn()) -> f64 {
    let timed = |times: u32| {
        let begun = Instant::now();
        (0..times).for_each(|_| launch());
        block_on(client.sync()).expect("a device that works");
        begun.elapsed().as_secs_f64() / f64::from(times)
    };
    timed(1); // Compiles.
    let times = (0.03 / timed(2)).clamp(1.0, 200.0) as u32;
    (0..5).map(|_| timed(times)).fold(f64::MAX, f64::min)
}

/// Measures a line and prints it, if it is wanted.
fn measure(client: &Client, what: &str, path: &str, flops: f64, launch: impl Fn()) {
    let line = format!("{what:32} {path}");
    let words = std::env::var("GEMMA3_RATES").unwrap_or_default();
    if words.split(',').all(|word| line.contains(word)) {
        let seconds = best_s(client, launch);
        println!("{line:90} {:8.3} ms {:6.1} TFLOP/s", 1e3 * seconds, flops / seconds / 1e12);
    }
}

/// What the tiles differ in.
fn name(tile: &CooperativeTile) -> String {
    let CooperativeTile { sixteens, planes, keys, holds, apart, ahead, together, cells, .. } = tile;
    let held = if *holds { "held" } else { "shared" };
    let apart = if *apart { "apart" } else { "in turns" };
    let ahead = match (together, ahead) {
        (true, _) => "together",
        (false, true) => "ahead",
        (false, false) => "then",
    };
    format!("cooperative {planes} x {} rows {keys} keys {held} {apart} {ahead} {cells:?}", 16 * sixteens)
}

/// Tiles that a device runs.
fn tiles(client: &Client, attention: &PrefillAttention) -> Vec<CooperativeTile> {
    let plane_units = client.properties().hardware.plane_size_max as usize;
    // 16s of rows, planes, keys; whether the tile holds, is apart, and ahead.
    let of: &[(usize, usize, usize, [bool; 3])] = if attention.cache.head_dim > 128 {
        &[
            (1, 4, 32, [true, true, true]),
            (1, 4, 32, [true, true, false]),
            (1, 3, 32, [true, true, true]),
            (1, 2, 32, [true, true, true]),
            (1, 2, 32, [true, false, true]),
            (1, 2, 32, [false, false, true]),
            (1, 2, 32, [false, false, false]),
            (1, 2, 64, [true, false, true]),
            (1, 2, 64, [true, false, false]),
            (1, 2, 16, [false, true, true]),
            (1, 4, 64, [true, false, false]),
            (1, 8, 32, [true, true, false]),
        ]
    } else {
        &[
            (2, 4, 64, [true, false, true]),
            (2, 4, 64, [true, false, false]),
            (2, 4, 48, [true, true, true]),
            (2, 4, 48, [true, true, false]),
            (2, 4, 32, [true, true, true]),
            (2, 4, 32, [true, true, false]),
            (2, 4, 32, [false, true, true]),
            (2, 4, 32, [true, false, true]),
            (2, 2, 64, [true, true, true]),
            (2, 2, 64, [true, false, true]),
            (2, 2, 32, [true, false, true]),
            (2, 2, 32, [true, true, true]),
            (2, 2, 32, [true, true, false]),
            (2, 2, 32, [false, true, true]),
            (1, 4, 64, [true, false, true]),
            (1, 4, 32, [true, true, true]),
            (1, 4, 32, [true, true, false]),
        ]
    };
    let tiles = of.iter().map(|(sixteens, planes, keys, [holds, apart, ahead])| CooperativeTile {
        plane_units,
        sixteens: *sixteens,
        planes: *planes,
        keys: *keys,
        holds: *holds,
        apart: *apart,
        ahead: *ahead,
        together: false,
        cells: Cells::longest(client),
    });
    // Each that can is tried with both on their way together, too.
    let tiles = tiles.flat_map(|tile| [tile, CooperativeTile { together: true, ..tile }]);
    // What today's was before shared memory was made of words.
    let short = CooperativeTile::choose(client, attention);
    let tiles = tiles.chain(short.map(|tile| CooperativeTile { cells: Cells::Fours, ..tile }));
    tiles.filter(|tile| tile.runs(client, attention)).collect()
}

#[test]
#[ignore = "a measurement"]
fn rates_of_prompts() {
    let Some(client) = client() else { return };
    for (model, heads, kv_heads, local) in [("1B", 4, 1, 512), ("4B", 8, 4, 1024)] {
        for (tokens, window) in [(512, None), (2048, Some(local)), (2048, None)] {
            let slots = if window.is_some() { local + tokens } else { tokens };
            let cache =
                CacheLayout { sequences: 1, kv_heads, slots, head_dim: 256, format: CacheFormat::F16 };
            let attention = PrefillAttention { cache, heads };
            let visible = visible_ranges(0..tokens, window, &[]);
            let seen: f64 = visible.chunks_exact(2).map(|range| f64::from(range[1] - range[0])).sum();
            let flops = 4.0 * seen * (heads * cache.head_dim) as f64;
            let mut random = Random::new(7);
            let numbers = tokens * heads * cache.head_dim;
            let queries = upload(&client, &random.floats(numbers));
            let [keys, values] =
                [(); 2].map(|()| upload_cache(&client, &random.floats(cache.quads() * 4), cache.format));
            let visible = upload_words(&client, &visible);
            let out = Rows::f32(&poisoned(&client, numbers));
            let what = format!("{model} {tokens} tokens, window {window:?}");
            let run = |path: PrefillPath, name: &str| {
                let buffers = PrefillBuffers {
                    queries: &queries,
                    keys: &keys,
                    values: &values,
                    visible: &visible,
                    out: &out,
                };
                measure(&client, &what, name, flops, || {
                    prefill_attention(&client, attention, 0, tokens, buffers, path);
                });
            };
            run(PrefillPath::Plain, "plain");
            let chosen = PrefillPath::choose(&client, &attention);
            if let PrefillPath::Tensor(_) = chosen {
                run(chosen, "tensor cores");
            }
            for tile in tiles(&client, &attention) {
                run(PrefillPath::Cooperative(tile), &name(&tile));
            }
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn rates_of_images() {
    let Some(client) = client() else { return };
    let attention = FullAttention { sequences: 1, tokens: 4096, heads: 16, head_dim: 72 };
    let FullAttention { tokens, heads, head_dim, .. } = attention;
    let (width, flops) = (heads * head_dim, 4.0 * (tokens * tokens * heads * head_dim) as f64);
    let mut random = Random::new(7);
    let floats = [(); 3].map(|()| upload(&client, &random.floats(tokens * width)));
    let rows = |format| {
        let all = floats.each_ref().map(|x| {
            let to = Rows::empty(&client, format, tokens, width);
            write_rows(&client, &Hardware::of(&client), Input::Plain { x }, &to, tokens, width);
            to
        });
        let [queries, keys, values] = all;
        [queries, keys, values, Rows::empty(&client, format, tokens, width)]
    };
    for format in [RowFormat::F32, RowFormat::Bf16] {
        if attention.row_format(&client, format) == format {
            let [queries, keys, values, out] = &rows(format);
            let buffers = FullBuffers { queries, keys, values, out };
            measure(&client, "image", &format!("rows of {format:?}"), flops, || {
                full_attention(&client, attention, 0.1, buffers);
            });
        }
    }
    let cache =
        CacheLayout { sequences: 1, kv_heads: heads, slots: tokens, head_dim, format: CacheFormat::F16 };
    let attention = PrefillAttention { cache, heads };
    let tiles = tiles(&client, &attention);
    let rows = (!tiles.is_empty()).then(|| rows(RowFormat::F16));
    for (tile, rows) in tiles.iter().zip(rows.iter().cycle()) {
        let of = rows.each_ref().map(|rows| &rows.handle);
        measure(&client, "image", &name(tile), flops, || {
            cooperative_full_attention(&client, attention, of, 0.1, *tile);
        });
    }
}

//! What a layer's attention takes, by each path and division: `cargo test --release rates -- --ignored --nocapture`.

use std::time::Instant;

use cubecl::client::Client;
use cubecl::future::block_on;

use super::cooperative::CooperativeShape;
use super::tests::{upload_cache, upload_words};
use super::*;
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

fn print(what: &str, path: &str, seconds: f64, flops: f64) {
    println!("{what:34} {path:58} {:8.3} ms {:6.1} TFLOP/s", 1e3 * seconds, flops / seconds / 1e12);
}

/// What the tiles differ in.
fn name(tile: &CooperativeTile) -> String {
    let CooperativeTile { sixteens, planes, keys, holds, apart, ahead, .. } = tile;
    let held = if *holds { "held" } else { "shared" };
    let (apart, ahead) = (if *apart { "apart" } else { "in turns" }, if *ahead { "ahead" } else { "then" });
    format!("cooperative {planes} x {} rows {keys} keys {held} {apart} {ahead}", 16 * sixteens)
}

/// Tiles that a device runs over such keys.
fn tiles(client: &Client, keys: &KeyRows) -> Vec<CooperativeTile> {
    let plane_units = client.properties().hardware.plane_size_max as usize;
    let mut tiles = vec![];
    for (sixteens, planes) in [(1, 2), (1, 4), (1, 8), (2, 2), (2, 4)] {
        for block in [32, 48, 64] {
            for (holds, apart, ahead) in [
                (true, true, true),
                (true, true, false),
                (true, false, true),
                (true, false, false),
                (false, true, true),
                (false, false, true),
                (false, false, false),
            ] {
                let tile =
                    CooperativeTile { plane_units, sixteens, planes, keys: block, holds, apart, ahead };
                // Sums of two 16s of rows of long heads exceed any unit's registers.
                let fits = sixteens * keys.head_dim <= 256;
                if fits && tile.runs(client, keys) {
                    tiles.push(tile);
                }
            }
        }
    }
    tiles
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
                let launch = || prefill_attention(&client, attention, 0, tokens, buffers, path);
                print(&what, name, best_s(&client, launch), flops);
            };
            run(PrefillPath::Plain, "plain");
            let chosen = PrefillPath::choose(&client, &attention);
            run(chosen, &format!("chosen: {chosen:?}"));
            for tile in tiles(&client, &KeyRows::of_cache(&cache)) {
                run(PrefillPath::Cooperative(tile), &name(&tile));
            }
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn rates_of_images() {
    let Some(client) = client() else { return };
    let (tokens, heads, head_dim) = (4096, 16, 72);
    let flops = 4.0 * (tokens * tokens * heads * head_dim) as f64;
    let mut random = Random::new(7);
    let numbers = tokens * heads * head_dim;
    let rows = [(); 3].map(|()| upload(&client, &random.floats(numbers)));
    let out = poisoned(&client, numbers);
    let keys = KeyRows::of_rows(tokens, heads, head_dim);
    for tile in tiles(&client, &keys) {
        let shape = CooperativeShape { heads, kv_heads: heads, keys, tile };
        let of = [&rows[0], &rows[1], &rows[2], &out];
        let launch = || cooperative_full_attention(&client, shape, [1, tokens], of, 0.1);
        print("image", &name(&tile), best_s(&client, launch), flops);
    }
    let [queries, keys, values, out] = [&rows[0], &rows[1], &rows[2], &out].map(Rows::f32);
    let attention = super::super::FullAttention { sequences: 1, tokens, heads, head_dim };
    let buffers = super::super::FullBuffers { queries: &queries, keys: &keys, values: &values, out: &out };
    let launch = || super::super::full_attention(&client, attention, 0.1, buffers);
    print("image", "plain", best_s(&client, launch), flops);
}

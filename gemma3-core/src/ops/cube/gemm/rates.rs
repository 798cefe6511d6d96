//! How fast products are, to choose their tiles by; no test of anything else.
//!
//! `cargo test -p gemma3-core --features vulkan --lib rates -- --ignored --nocapture --test-threads 1`, or with `cuda`.
//! `GEMMA3_RATES`, words with commas between them, leaves those lines away that lack one of them, and has all matrices
//! measured that have them all: `4b,q4_0,2048`, `down,bf16`. `rates_ahead` compiles some twenty kernels a product and prints
//! the best of each: `GEMMA3_RATES=1b,bf16` or `=image` for some minutes of it.

use std::time::Instant;

use cubecl::cmma;
use cubecl::future::block_on;
use cubecl::ir::{ElemType, FloatKind};
use half::f16;

use super::plan::has_cooperative;
use super::tile::SIDE;
use super::*;
use crate::formats::TensorFormat;
use crate::ops::cube::matvec::{Hardware, Input};
use crate::ops::cube::testing::*;

/// The best of several rounds, and the first launch, which compiles: seconds of one launch.
fn seconds(client: &Client, launch: impl Fn()) -> (f64, f64) {
    let round = |times: usize| {
        let begun = Instant::now();
        for _ in 0..times {
            launch();
        }
        block_on(client.sync()).expect("the device works");
        begun.elapsed().as_secs_f64() / times as f64
    };
    let first = round(1);
    let times = (0.01 / round(2)).clamp(2.0, 200.0) as usize;
    ((0..5).map(|_| round(times)).fold(f64::INFINITY, f64::min), first)
}

fn is_wanted(line: &str) -> bool {
    let words = std::env::var("GEMMA3_RATES").unwrap_or_default();
    words.split(',').all(|word| line.contains(word))
}

/// A device with cooperative matrices.
fn cooperative_client() -> Option<Client> {
    let client = client()?;
    if !has_cooperative(&client) {
        println!("skipped: no cooperative matrices of f16");
        return None;
    }
    Some(client)
}

/// Where the matrices of a step come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    /// They stay in registers.
    Registers,
    /// Shared memory, in rows of so many halves.
    Shared(usize),
}

/// `steps` times the product of 64 rows and 16 `n` columns of a plane, 16 deep.
#[cube(launch_unchecked)]
fn peak_kernel<W: Numeric, V: Size>(
    x: &[Vector<W, V>],
    out: &mut [f32],
    steps: u32,
    #[comptime] n: usize,
    #[comptime] planes: usize,
    #[comptime] source: Source,
    #[comptime] cells: Cells,
) {
    let row_halves = comptime!(match source {
        Source::Registers => 24,
        Source::Shared(halves) => halves,
    });
    let row = comptime!(cells.of(row_halves));
    let rows = comptime!(64 + SIDE * n);
    let mut tile = Shared::<[Vector<W, V>]>::new_aligned_slice(comptime!(rows * row), 32usize);
    let mut at = UNIT_POS as usize;
    while at < comptime!(rows * row) {
        tile[at] = x[at];
        at += CUBE_DIM as usize;
    }
    sync_cube();
    let mut sums = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..4 * n {
        sums.push(cmma::Matrix::<f32>::from_value(
            cmma::MatrixIdent::Accumulator,
            SIDE,
            SIDE,
            SIDE,
            cmma::MatrixLayout::Undefined,
            0.0f32,
        ));
    }
    if comptime!(matches!(source, Source::Registers)) {
        let (a, b) = operands::<W, V>(&tile, 0usize, n, row_halves, cells);
        for _ in 0..steps {
            products(&a, &b, &sums, n);
        }
    } else {
        for step in 0..steps {
            // The address has to change, or else they are loaded once.
            let column = step as usize % comptime!((row_halves - 8) / SIDE) * comptime!(cells.of(SIDE));
            let (a, b) = operands::<W, V>(&tile, column, n, row_halves, cells);
            products(&a, &b, &sums, n);
        }
    }
    let mut bounce = Shared::<[f32]>::new_aligned_slice(comptime!(planes * SIDE * SIDE), 32usize);
    let own = UNIT_POS as usize / 32 * comptime!(SIDE * SIDE);
    let mut total = 0.0f32;
    #[unroll]
    for i in 0..4 * n {
        cmma::store(
            &mut bounce[own..own + comptime!(SIDE * SIDE)],
            sums.index(i),
            comptime!(SIDE as u32).runtime(),
            cmma::MatrixLayout::RowMajor,
        );
        sync_plane();
        total += bounce[own + UNIT_POS as usize % 32];
        sync_plane();
    }
    out[(CUBE_POS_X * CUBE_DIM + UNIT_POS) as usize] = total;
}

#[cube]
fn operands<W: Numeric, V: Size>(
    tile: &[Vector<W, V>],
    column: usize,
    #[comptime] n: usize,
    #[comptime] row_halves: usize,
    #[comptime] cells: Cells,
) -> (Sequence<cmma::Matrix<f16>>, Sequence<cmma::Matrix<f16>>) {
    let stride = comptime!(cells.stride(row_halves));
    let mut a = Sequence::<cmma::Matrix<f16>>::new();
    let mut b = Sequence::<cmma::Matrix<f16>>::new();
    #[unroll]
    for i in 0..4usize {
        let at = column + comptime!(cells.of(i * SIDE * row_halves));
        a.push(loaded::<W, V>(tile, at, cmma::MatrixIdent::A, cmma::MatrixLayout::RowMajor, stride));
    }
    #[unroll]
    for j in 0..n {
        let at = column + comptime!(cells.of((64 + j * SIDE) * row_halves));
        b.push(loaded::<W, V>(tile, at, cmma::MatrixIdent::B, cmma::MatrixLayout::ColMajor, stride));
    }
    (a, b)
}

#[cube]
fn products(
    a: &Sequence<cmma::Matrix<f16>>,
    b: &Sequence<cmma::Matrix<f16>>,
    sums: &Sequence<cmma::Matrix<f32>>,
    #[comptime] n: usize,
) {
    #[unroll]
    for j in 0..n {
        #[unroll]
        for i in 0..4usize {
            let sum = sums.index(comptime!(i * n + j));
            cmma::execute(a.index(i), b.index(j), sum, sum);
        }
    }
}

/// `steps` times the product of matrices that a whole cube has, `m` by `n` by `k`, from shared memory.
#[cube(launch_unchecked)]
fn cube_peak_kernel(
    x: &[Vector<u32, Const<4>>],
    out: &mut [f32],
    steps: u32,
    #[comptime] m: usize,
    #[comptime] n: usize,
    #[comptime] k: usize,
) {
    let row_halves = comptime!(4 * k + 8);
    let row = comptime!(Cells::Words.of(row_halves));
    let stride = comptime!(Cells::Words.stride(row_halves));
    let mut tile = Shared::<[Vector<u32, Const<4>>]>::new_aligned_slice(comptime!((m + n) * row), 32usize);
    let mut at = UNIT_POS as usize;
    while at < comptime!((m + n) * row) {
        tile[at] = x[at];
        at += CUBE_DIM as usize;
    }
    sync_cube();
    let sums = cmma::Matrix::<f32, cmma::Cube>::from_value(
        cmma::MatrixIdent::Accumulator,
        m,
        n,
        k,
        cmma::MatrixLayout::Undefined,
        0.0f32,
    );
    for step in 0..steps {
        let column = step as usize % 4 * comptime!(Cells::Words.of(k));
        let second = comptime!(m * row) + column;
        // SAFETY: both are loaded before they are used.
        let (mut a, mut b) = unsafe {
            (
                cmma::Matrix::<f16, cmma::Cube>::uninitialized(
                    cmma::MatrixIdent::A,
                    m,
                    n,
                    k,
                    cmma::MatrixLayout::RowMajor,
                ),
                cmma::Matrix::<f16, cmma::Cube>::uninitialized(
                    cmma::MatrixIdent::B,
                    m,
                    n,
                    k,
                    cmma::MatrixLayout::ColMajor,
                ),
            )
        };
        cmma::load(&mut a, &tile[column..column + 1], stride.runtime());
        cmma::load(&mut b, &tile[second..second + 1], stride.runtime());
        cmma::execute(&a, &b, &sums, &sums);
    }
    let at = CUBE_POS_X as usize * comptime!(m * n);
    cmma::store(
        &mut out[at..at + comptime!(m * n)],
        &sums,
        comptime!(n as u32).runtime(),
        cmma::MatrixLayout::RowMajor,
    );
}

#[test]
#[ignore = "measures, and asserts nothing"]
fn rates_of_matrices_of_cubes() {
    let Some(client) = cooperative_client() else { return };
    let (half, float) = (ElemType::Float(FloatKind::F16), ElemType::Float(FloatKind::F32));
    let all = client.features().matmul.cube_mma.clone();
    for config in all.iter().filter(|config| (config.a_type, config.cd_type) == (half, float)) {
        let units = config.units_per_block.unwrap_or(128) as usize;
        for (m, n, k) in [(64, 64, 16), (128, 128, 16), (128, 128, 32), (128, 256, 16), (256, 128, 16)] {
            let fits = [(m, config.m_granularity), (n, config.n_granularity), (k, config.k_granularity)]
                .iter()
                .all(|(size, granularity)| size % *granularity as usize == 0);
            let bytes = (m + n) * (4 * k + 8) * 2;
            let hardware = &client.properties().hardware;
            let room = hardware.max_shared_memory_size - hardware.cube_mma_reserved_shared_memory;
            let line = format!("cube peak: {m} x {n} x {k}, {units} units");
            if !fits || bytes > room || !is_wanted(&line) {
                continue;
            }
            let (cubes, steps) = (132 * 4, 512);
            let x = upload(&client, &Random::new(1).floats(bytes / 4));
            let out = client.empty(cubes * m * n * 4);
            let (taken, _) = seconds(&client, || {
                // SAFETY: the lengths are those that the kernel computes its indices from.
                unsafe {
                    cube_peak_kernel::launch_unchecked(
                        &client,
                        CubeCount::Static(cubes as u32, 1, 1),
                        CubeDim::new_1d(units as u32),
                        BufferArg::from_raw_parts(x.clone(), bytes / 16),
                        BufferArg::from_raw_parts(out.clone(), cubes * m * n),
                        steps,
                        m,
                        n,
                        k,
                    );
                }
            });
            let flops = 2.0 * (m * n * k) as f64 * (cubes as f64) * f64::from(steps);
            println!("{line}: {:.0} TFLOP/s", flops / taken / 1e12);
        }
    }
}

#[test]
#[ignore = "measures, and asserts nothing"]
fn rates_of_cooperative_matrices_alone() {
    let Some(client) = cooperative_client() else { return };
    let properties = client.properties();
    println!("{}: {:?}", client.name(), properties.hardware);
    println!("matrices of planes: {:?}", properties.features.matmul.cmma);
    println!("matrices of cubes: {:?}", properties.features.matmul.cube_mma);
    let cells = match client.name() {
        "cuda" => vec![Cells::Fours, Cells::Eights],
        _ => vec![Cells::WordPairs, Cells::Words],
    };
    for (n, planes) in [(2, 4), (2, 8), (4, 4), (4, 8)] {
        for source in [Source::Registers, Source::Shared(40), Source::Shared(72)] {
            for cells in &cells {
                let line = format!("peak: 64 x {} a plane, {planes} planes, {source:?}, {cells:?}", 16 * n);
                if is_wanted(&line) {
                    println!("{line}: {:.0} TFLOP/s", peak(&client, n, planes, source, *cells));
                }
            }
        }
    }
}

fn peak(client: &Client, n: usize, planes: usize, source: Source, cells: Cells) -> f64 {
    let (cubes, steps, units) = (132 * 16, 512, 32 * planes);
    let len = (64 + SIDE * n) * 72;
    let random = Random::new(1).floats(len);
    let halves: Vec<u8> = random.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
    let x = client.create_from_slice(&halves);
    let out = client.empty(cubes * units * 4);
    let launch = match cells.are_words() {
        true => peak_kernel::launch_unchecked::<u32>,
        false => peak_kernel::launch_unchecked::<f16>,
    };
    let (taken, _) = seconds(client, || {
        // SAFETY: the lengths are more than the kernel reads, and as many as it has units.
        unsafe {
            launch(
                client,
                CubeCount::Static(cubes as u32, 1, 1),
                CubeDim::new_1d(units as u32),
                cells.vector_size(),
                BufferArg::from_raw_parts(x.clone(), cells.of(len)),
                BufferArg::from_raw_parts(out.clone(), cubes * units),
                steps as u32,
                n,
                planes,
                source,
                cells,
            );
        }
    });
    2.0 * (64 * 16 * n * 16) as f64 * (cubes * planes * steps) as f64 / taken / 1e12
}

/// A matrix of a model: its name, outputs, inputs and whether it is a gate over an up projection.
type Shape = (&'static str, usize, usize, bool);

const SHAPES: [Shape; 8] = [
    ("4b gate_up", 20_480, 2_560, true),
    ("4b down", 2_560, 10_240, false),
    ("4b qkv", 4_096, 2_560, false),
    ("4b output", 2_560, 2_048, false),
    ("1b gate_up", 13_824, 1_152, true),
    ("1b down", 1_152, 6_912, false),
    ("1b qkv", 1_536, 1_152, false),
    ("1b output", 1_152, 1_024, false),
];

const FORMATS: [TensorFormat; 5] =
    [TensorFormat::F16, TensorFormat::BF16, TensorFormat::Q8_0, TensorFormat::Q4_0, TensorFormat::Q4_K];

/// A matrix whose rows repeat themselves.
fn repeated_matrix(client: &Client, format: TensorFormat, rows: usize, cols: usize) -> PackedMatrix {
    let once = file_bytes(format, 16, cols, &mut Random::new(2));
    let parts = vec![&once[..]; rows / 16];
    PackedMatrix::upload(client, format, cols, &parts).expect("whole blocks")
}

fn input(client: &Client, format: RowFormat, rows: usize, cols: usize) -> Rows {
    let x = upload(client, &Random::new(3).floats(rows * cols));
    let rows_of = Rows::empty(client, format, rows, cols);
    write_rows(client, &Hardware::of(client), Input::Plain { x: &x }, &rows_of, rows, cols);
    rows_of
}

/// Seconds of a product, and of the first, which compiles; trillions of operations a second.
fn rate(client: &Client, plan: Plan, rows: usize, matrix: &PackedMatrix, gated: bool) -> (f64, f64, f64) {
    let layout = matrix.layout;
    let from = match plan {
        Plan::Registers(tile) => tile.numbers.row_format(),
        Plan::Tensor(tile) => tile.engine.row_format(),
    };
    let x = input(client, from, rows, layout.cols);
    let out = Rows::f32(&client.empty(rows * layout.rows * 4));
    let parts = match plan {
        Plan::Registers(tile) => tile.splits,
        Plan::Tensor(tile) => tile.splits,
    };
    let scratch = client.empty((32 * rows.min(64)).max(parts * rows) * layout.rows * 4);
    let (taken, first) = seconds(client, || {
        let output = if gated { Output::gated(&out) } else { Output::plain(&out) };
        launch(client, plan, &x, matrix, output, rows, Some(&scratch));
    });
    let flops = 2.0 * rows as f64 * layout.rows as f64 * layout.cols as f64;
    (taken, first, flops / taken / 1e12)
}

fn print_rate(client: &Client, line: &str, plan: Plan, rows: usize, matrix: &PackedMatrix, gated: bool) {
    let (taken, first, tflop_s) = rate(client, plan, rows, matrix, gated);
    println!(
        "{line}: {:.0} us, {tflop_s:.1} TFLOP/s, {:.0} GB/s of weights; compiled in {:.0} ms",
        taken * 1e6,
        matrix.layout.bytes() as f64 / taken / 1e9,
        first * 1e3
    );
}

/// The tiles that are tried, by their name.
fn tiles() -> Vec<Tile> {
    vec![
        Tile::cooperative([128, 128, 32], [2, 2], 2),
        Tile::cooperative([128, 128, 32], [2, 4], 2),
        Tile::cooperative([128, 128, 64], [2, 2], 1),
        Tile::cooperative([128, 256, 16], [2, 4], 2),
        Tile::cooperative([256, 128, 16], [4, 2], 2),
        Tile::cooperative([128, 256, 32], [2, 4], 1),
        Tile::cooperative([256, 128, 32], [4, 2], 1),
        Tile::cooperative([128, 64, 32], [2, 2], 2),
        Tile::cooperative([64, 128, 32], [1, 4], 2),
        Tile::cooperative([64, 64, 64], [2, 2], 2),
    ]
}

fn name(tile: &Tile) -> String {
    let Tile { m, n, depth, planes_m, planes_n, stages, splits, ahead, .. } = tile;
    format!("{m}x{n}x{depth}, {planes_m}x{planes_n} planes, {stages} stages, {splits} parts, {ahead} ahead")
}

/// Tiles with one of them on its way and with more. Some are as wide as lets narrow products fill a device of 132
/// multiprocessors; these have no even number of matrices for gates and their up projections.
fn tiles_ahead(gated: bool) -> Vec<Tile> {
    let all = [
        (Tile::cooperative([256, 128, 32], [4, 2], 1), &[1, 2][..]),
        (Tile::cooperative([256, 128, 16], [4, 2], 2), &[2, 4]),
        (Tile::cooperative([128, 256, 16], [2, 4], 2), &[2]),
        (Tile::cooperative([128, 128, 32], [2, 4], 2), &[1, 2]),
        (Tile::cooperative([128, 128, 32], [2, 2], 2), &[1, 2]),
        (Tile::cooperative([128, 128, 64], [2, 2], 1), &[1]),
        (Tile::cooperative([128, 64, 32], [2, 2], 2), &[1, 2]),
        (Tile::cooperative([128, 144, 32], [4, 1], 2), &[1, 2]),
        (Tile::cooperative([128, 160, 32], [2, 2], 1), &[1, 2]),
        (Tile::cooperative([128, 160, 16], [2, 2], 2), &[2]),
        (Tile::cooperative([128, 192, 32], [2, 4], 1), &[1, 2]),
        (Tile::cooperative([128, 192, 16], [2, 4], 2), &[2]),
    ];
    let fits = |tile: &Tile| !gated || tile.matrices_n().is_multiple_of(2);
    let all = all.iter().filter(|(tile, _)| fits(tile));
    all.flat_map(|(tile, aheads)| aheads.iter().map(|ahead| tile.ahead(*ahead))).collect()
}

/// Tiles that a product tries at a number of rows, undivided and, where that leaves multiprocessors idle, in parts.
fn tried(processor: &Processor, layout: &Layout, rows: usize, gated: bool) -> Vec<Tile> {
    let fits = |tile: &Tile| tile.shared_bytes() <= processor.shared_bytes;
    let tiles = tiles_ahead(gated).into_iter().map(|tile| processor.of_planes(tile)).filter(fits);
    tiles.flat_map(|tile| [tile, processor.filled(tile, layout, rows, 1)]).collect()
}

#[test]
#[ignore = "measures, and asserts nothing"]
fn rates_of_many_rows() {
    let Some(client) = cooperative_client() else { return };
    let processor = Processor::of(&client);
    for (shape, outputs, cols, gated) in SHAPES {
        for format in FORMATS {
            // The largest in every format, and the largest of the others in one; more where they are asked for.
            let is_large = shape.ends_with("gate_up") || shape.ends_with("down");
            let is_first = shape == "4b gate_up" || (is_large && format == TensorFormat::Q4_0);
            let is_whole = cols.is_multiple_of(format.block_len());
            if !is_whole || !(is_first || std::env::var("GEMMA3_RATES").is_ok()) {
                continue;
            }
            let all = format!("{shape} {format}");
            let matrix = repeated_matrix(&client, format, outputs, cols);
            for rows in [512, 2048] {
                let fast = processor.row_format(crate::ops::Precision::Fast);
                let planned = processor.plan(&matrix.layout, fast, rows, gated);
                let line = format!("{all} {rows} planned: {planned:?}");
                if is_wanted(&line) {
                    print_rate(&client, &line, planned, rows, &matrix, gated);
                }
                for tile in tiles() {
                    let line = format!("{all} {rows} {}", name(&tile));
                    if tile.shared_bytes() <= processor.shared_bytes && is_wanted(&line) {
                        print_rate(&client, &line, Plan::Tensor(tile), rows, &matrix, gated);
                    }
                }
            }
        }
    }
}

/// What of an image encoder's layer is multiplied, of 4,096 rows.
const IMAGE_SHAPES: [Shape; 3] = [
    ("image attention", 1_152, 1_152, false),
    ("image up", 4_304, 1_152, false),
    ("image down", 1_152, 4_304, false),
];

#[test]
#[ignore = "measures, and asserts nothing"]
fn rates_ahead() {
    let Some(client) = cooperative_client() else { return };
    let processor = Processor::of(&client);
    let prompts = [TensorFormat::BF16, TensorFormat::Q8_0, TensorFormat::Q4_0];
    let of_prompts = SHAPES.iter().flat_map(|shape| prompts.map(|format| (*shape, format, &[512, 2048][..])));
    let of_images = IMAGE_SHAPES.iter().map(|shape| (*shape, TensorFormat::F16, &[4096][..]));
    for ((shape, outputs, cols, gated), format, counts) in of_images.chain(of_prompts) {
        let lines = counts.iter().map(|rows| (*rows, format!("{shape} {format} {rows}")));
        let lines: Vec<(usize, String)> = lines.filter(|(_, line)| is_wanted(line)).collect();
        if lines.is_empty() {
            continue;
        }
        let matrix = repeated_matrix(&client, format, outputs, cols);
        for (rows, line) in lines {
            let planned = processor.plan(&matrix.layout, RowFormat::F16, rows, gated);
            let Plan::Tensor(planned) = planned else { continue };
            let mut plans = tried(&processor, &matrix.layout, rows, gated);
            plans.push(planned);
            let mut rates: Vec<(f64, f64, Tile)> = Vec::new();
            for tile in plans {
                if rates.iter().all(|(_, _, other)| *other != tile) {
                    let (taken, _, tflop_s) = rate(&client, Plan::Tensor(tile), rows, &matrix, gated);
                    rates.push((taken, tflop_s, tile));
                }
            }
            rates.sort_by(|a, b| a.0.total_cmp(&b.0));
            println!("{line}:");
            for (rank, (taken, tflop_s, tile)) in rates.iter().enumerate() {
                let mark = if *tile == planned { "  <- planned" } else { "" };
                if rank < 10 || *tile == planned {
                    println!("  {:7.0} us {tflop_s:6.1} TFLOP/s  {}{mark}", taken * 1e6, name(tile));
                }
            }
        }
    }
}

#[test]
#[ignore = "measures, and asserts nothing"]
fn rates_of_few_rows() {
    let Some(client) = cooperative_client() else { return };
    let processor = Processor::of(&client);
    for (shape, outputs, cols, gated) in SHAPES {
        for format in [TensorFormat::BF16, TensorFormat::Q4_0] {
            let matrix = repeated_matrix(&client, format, outputs, cols);
            for (rows, m) in [(8, 16), (32, 32)] {
                for (n, depth, planes) in [(128, 64, 4), (128, 32, 4), (64, 64, 2), (256, 32, 8)] {
                    let tile = Tile::cooperative([m, n, depth], [1, planes], 2);
                    for each in [1, 2, 4] {
                        let tile = processor.filled(tile, &matrix.layout, rows, each);
                        let line = format!("{shape} {format} {rows} {}", name(&tile));
                        if tile.shared_bytes() <= processor.shared_bytes && is_wanted(&line) {
                            print_rate(&client, &line, Plan::Tensor(tile), rows, &matrix, gated);
                        }
                    }
                }
            }
        }
    }
}

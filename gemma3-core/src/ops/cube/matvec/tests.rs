use super::product::Product;
use super::*;
use crate::formats::TensorFormat;
use crate::ops::Precision;
use crate::ops::cube::packed::Layout;
use crate::ops::cube::testing::*;

/// Sums of f32 in chains of at most about 100 terms, each off by 2^-24; of block formats with minima, scaled
/// sums cancel to some tenths of their sizes.
const TOLERANCE: f64 = 2e-5;

const EPS: f32 = 1e-6;

fn widths(format: TensorFormat) -> &'static [usize] {
    match format {
        // The last vector of a row is not full, or units have unequal shares.
        TensorFormat::F32 | TensorFormat::F16 | TensorFormat::BF16 => &[64, 156],
        TensorFormat::Q4_K | TensorFormat::Q5_K | TensorFormat::Q6_K => &[256, 768],
        _ => &[64, 416],
    }
}

fn tilings(hardware: &Hardware, layout: &Layout, batch: usize, outputs: usize) -> Vec<Tiling> {
    let mut tilings = Vec::new();
    for stage in [false, true] {
        tilings.push(Tiling::choose(hardware, layout, batch, outputs, stage, Precision::Exact));
    }
    let native_halves = hardware.native_halves;
    for (vector_words, units, rows, passes, unroll, staged) in
        [(4, 32, 1, 1, 1, false), (4, 64, 2, 1, 2, true), (2, 8, 4, 2, 2, true), (1, 128, 2, 3, 3, false)]
    {
        if vector_words * layout.weights_per_word() >= 4 {
            let groups = hardware.groups_of(units);
            let rows = rows.max(outputs);
            let activations = Activations::F32;
            tilings.push(Tiling {
                vector_words,
                groups,
                rows,
                passes,
                unroll,
                staged,
                activations,
                native_halves,
            });
        }
    }
    tilings
}

#[test]
fn the_plain_kernel_multiplies_every_format() {
    let Some(client) = client() else { return };
    for format in TensorFormat::ALL {
        for cols in widths(format) {
            let mut random = Random::new(*cols as u64);
            let (matrix, weights) = random_matrix(&client, format, 19, *cols, &mut random);
            let x = random.floats(2 * cols);
            let out = poisoned(&client, 2 * 19);
            matvec_plain(&client, &upload(&client, &x), &matrix, &out, 2);
            let expected = product(&to_f64(&x), &weights, *cols);
            assert_close(&download(&client, &out), &expected, TOLERANCE, &format!("{format} {cols}"));
        }
    }
}

#[test]
fn the_fast_kernel_multiplies_every_format_in_every_tiling() {
    let Some(client) = client() else { return };
    let hardware = Hardware::of(&client);
    for format in TensorFormat::ALL {
        for (cols, batch) in widths(format).iter().zip([1, 2]) {
            // Rows that no tiling divides.
            let rows = 37;
            let mut random = Random::new(*cols as u64 + 1);
            let (matrix, weights) = random_matrix(&client, format, rows, *cols, &mut random);
            let x = random.floats(batch * cols);
            let expected = product(&to_f64(&x), &weights, *cols);
            let x = upload(&client, &x);
            // Compiling kernels takes most of the time: all tilings for one of the widths.
            let count = if batch == 1 { 1 } else { usize::MAX };
            for tiling in tilings(&hardware, &matrix.layout, batch, 1).into_iter().take(count) {
                let out = poisoned(&client, batch * rows);
                matvec(&client, Input::Plain { x: &x }, &matrix, &out, batch, tiling);
                let what = format!("{format} {cols} {batch} {tiling:?}");
                assert_close(&download(&client, &out), &expected, TOLERANCE, &what);
            }
        }
    }
}

#[test]
fn a_batch_of_eight_rows_is_multiplied_at_once() {
    let Some(client) = client() else { return };
    let hardware = Hardware::of(&client);
    for format in [TensorFormat::BF16, TensorFormat::Q4_0, TensorFormat::Q4_K, TensorFormat::Q6_K] {
        let cols = 256;
        let mut random = Random::new(8);
        let (matrix, weights) = random_matrix(&client, format, 21, cols, &mut random);
        let x = random.floats(MAX_BATCH * cols);
        let out = poisoned(&client, MAX_BATCH * 21);
        let tiling = Tiling::choose(&hardware, &matrix.layout, MAX_BATCH, 1, true, Precision::Exact);
        matvec(&client, Input::Plain { x: &upload(&client, &x) }, &matrix, &out, MAX_BATCH, tiling);
        let expected = product(&to_f64(&x), &weights, cols);
        assert_close(&download(&client, &out), &expected, TOLERANCE, &format!("{format}"));
    }
}

#[test]
fn a_norm_can_come_first() {
    let Some(client) = client() else { return };
    let hardware = Hardware::of(&client);
    for (format, cols) in [(TensorFormat::BF16, 156), (TensorFormat::Q8_0, 160), (TensorFormat::Q4_K, 256)] {
        let rows = 23;
        let mut random = Random::new(3);
        let (matrix, weights) = random_matrix(&client, format, rows, cols, &mut random);
        for batch in [1, 2] {
            let x = random.floats(batch * cols);
            let scale = random.floats(cols);
            let normed = rms_norm(&to_f64(&x), &scale, f64::from(EPS));
            let expected = product(&normed, &weights, cols);
            let (x, scale) = (upload(&client, &x), upload(&client, &scale));
            for tiling in tilings(&hardware, &matrix.layout, batch, 1).iter().filter(|tiling| tiling.staged) {
                let out = poisoned(&client, batch * rows);
                let input = Input::Normed { x: &x, scale: &scale, eps: EPS };
                matvec(&client, input, &matrix, &out, batch, *tiling);
                assert_close(&download(&client, &out), &expected, TOLERANCE, &format!("{format} {tiling:?}"));
            }
        }
    }
}

#[test]
fn a_residual_and_its_norms_can_come_first() {
    let Some(client) = client() else { return };
    let hardware = Hardware::of(&client);
    let (rows, cols, batch) = (23, 160, 2);
    let mut random = Random::new(4);
    let (matrix, weights) = random_matrix(&client, TensorFormat::Q8_0, rows, cols, &mut random);
    let x = random.floats(batch * cols);
    let branch = random.floats(batch * cols);
    let (branch_scale, scale) = (random.floats(cols), random.floats(cols));
    let normed = rms_norm(&to_f64(&branch), &branch_scale, f64::from(EPS));
    let h: Vec<f64> = normed.iter().zip(&x).map(|(normed, x)| normed + f64::from(*x)).collect();
    let expected = product(&rms_norm(&h, &scale, f64::from(EPS)), &weights, cols);
    let h: Vec<(f64, f64)> = h.into_iter().map(|h| (h, 4.0)).collect();
    for tiling in tilings(&hardware, &matrix.layout, batch, 1).iter().filter(|tiling| tiling.staged) {
        let (out, stream) = (poisoned(&client, batch * rows), poisoned(&client, batch * cols));
        let input = Input::Residual {
            x: &upload(&client, &x),
            branch: &upload(&client, &branch),
            branch_scale: &upload(&client, &branch_scale),
            scale: &upload(&client, &scale),
            stream: &stream,
            eps: EPS,
        };
        matvec(&client, input, &matrix, &out, batch, *tiling);
        assert_close(&download(&client, &out), &expected, TOLERANCE, &format!("{tiling:?}"));
        assert_close(&download(&client, &stream), &h, 1e-6, "stream");
    }
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

#[test]
fn a_gate_meets_its_up_projection() {
    let Some(client) = client() else { return };
    let hardware = Hardware::of(&client);
    for format in [TensorFormat::F32, TensorFormat::Q4_0, TensorFormat::Q6_K] {
        let (outputs, cols, batch) = (13, 256, 2);
        let mut random = Random::new(5);
        let (matrix, weights) = random_matrix(&client, format, 2 * outputs, cols, &mut random);
        let x = random.floats(batch * cols);
        let scale: Vec<f32> = random.floats(cols).iter().map(|scale| 0.5 * scale).collect();
        let normed = rms_norm(&to_f64(&x), &scale, f64::from(EPS));
        let gates = product(&normed, &weights[..outputs * cols], cols);
        let ups = product(&normed, &weights[outputs * cols..], cols);
        // gelu has a slope of at most 1.13, so that errors of both factors add up with the size of the other.
        let expected: Vec<(f64, f64)> = (gates.iter().zip(&ups))
            .map(|((gate, gate_size), (up, up_size))| {
                (gelu(*gate) * up, 1.13 * gate_size * up.abs() + gelu(*gate).abs() * up_size + 1e-3)
            })
            .collect();
        for tiling in tilings(&hardware, &matrix.layout, batch, 2).iter().filter(|tiling| tiling.staged) {
            let out = poisoned(&client, batch * outputs);
            let (x, scale) = (upload(&client, &x), upload(&client, &scale));
            let input = Input::Normed { x: &x, scale: &scale, eps: EPS };
            gated(&client, input, &matrix, &out, batch, *tiling);
            assert_close(
                &download(&client, &out),
                &expected,
                2.0 * TOLERANCE,
                &format!("{format} {tiling:?}"),
            );
        }
    }
}

/// The tilings with which integers are tested.
fn integer_tilings(hardware: &Hardware, layout: &Layout, outputs: usize) -> Vec<Tiling> {
    let mut tilings = Vec::new();
    for (vector_words, units, rows, passes, unroll) in [(4, 4, 1, 1, 2), (2, 64, 4, 2, 1), (1, 32, 2, 1, 3)] {
        if vector_words * layout.weights_per_word() >= 8 {
            tilings.push(Tiling {
                vector_words,
                groups: hardware.groups_of(units),
                rows: rows.max(outputs),
                passes,
                unroll,
                staged: true,
                activations: Activations::Int8,
                native_halves: hardware.native_halves,
            });
        }
    }
    tilings
}

/// `x Wᵀ` and, of each output, the bound of what rounding each block of 32 of the input to signed bytes
/// does: every number is off by at most half of 1/127 of its block's largest.
fn rounded_product(x: &[f64], weights: &[f32], cols: usize) -> Vec<(f64, f64)> {
    let mut out = product(x, weights, cols);
    let blocks = out.chunks_exact_mut(weights.len() / cols).zip(x.chunks_exact(cols));
    for (out, x) in blocks {
        for ((_, size), weights) in out.iter_mut().zip(weights.chunks_exact(cols)) {
            let bounds = x.chunks_exact(32).zip(weights.chunks_exact(32)).map(|(x, weights)| {
                let largest = x.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
                largest / 254.0 * weights.iter().map(|w| f64::from(w.abs())).sum::<f64>()
            });
            *size = TOLERANCE * *size + bounds.sum::<f64>();
        }
    }
    out
}

#[test]
fn integers_are_within_the_rounding_of_the_input_in_every_format() {
    let Some(client) = client() else { return };
    let hardware = Hardware::of(&client);
    for format in TensorFormat::ALL.into_iter().filter(|format| format.block_len() > 1) {
        let (rows, batch, cols) = (37, 2, widths(format)[1]);
        let mut random = Random::new(41);
        let (matrix, weights) = random_matrix(&client, format, rows, cols, &mut random);
        let mut x = random.floats(batch * cols);
        x[32..64].fill(0.0); // A block without a largest number.
        let expected = rounded_product(&to_f64(&x), &weights, cols);
        for tiling in integer_tilings(&hardware, &matrix.layout, 1) {
            let out = poisoned(&client, batch * rows);
            matvec(&client, Input::Plain { x: &upload(&client, &x) }, &matrix, &out, batch, tiling);
            assert_close(&download(&client, &out), &expected, 1.0, &format!("{format} {tiling:?}"));
        }
    }
}

#[test]
fn integers_of_numbers_that_are_integers_are_exact() {
    let Some(client) = client() else { return };
    let hardware = Hardware::of(&client);
    for format in [TensorFormat::Q8_0, TensorFormat::Q4_0, TensorFormat::Q4_1, TensorFormat::Q6_K] {
        let (rows, cols) = (9, 256);
        let mut random = Random::new(42);
        let (matrix, weights) = random_matrix(&client, format, rows, cols, &mut random);
        // The largest of each block is 127, so that its scale is 1.
        let integer = |i: usize| if i.is_multiple_of(32) { 127.0 } else { ((i * 37) % 255) as f32 - 127.0 };
        let x: Vec<f32> = (0..cols).map(integer).collect();
        let expected = product(&to_f64(&x), &weights, cols);
        for tiling in integer_tilings(&hardware, &matrix.layout, 1) {
            let out = poisoned(&client, rows);
            matvec(&client, Input::Plain { x: &upload(&client, &x) }, &matrix, &out, 1, tiling);
            assert_close(&download(&client, &out), &expected, TOLERANCE, &format!("{format} {tiling:?}"));
        }
    }
}

#[test]
fn integers_can_come_after_a_norm_and_a_residual() {
    let Some(client) = client() else { return };
    let hardware = Hardware::of(&client);
    let (rows, cols, batch) = (24, 1056, 1);
    let mut random = Random::new(43);
    let (matrix, weights) = random_matrix(&client, TensorFormat::Q4_0, rows, cols, &mut random);
    let (x, branch) = (random.floats(batch * cols), random.floats(batch * cols));
    let (branch_scale, scale) = (random.floats(cols), random.floats(cols));
    let added = rms_norm(&to_f64(&branch), &branch_scale, f64::from(EPS));
    let h: Vec<f64> = added.iter().zip(&x).map(|(added, x)| added + f64::from(*x)).collect();
    let expected = rounded_product(&rms_norm(&h, &scale, f64::from(EPS)), &weights, cols);
    let normed = rounded_product(&rms_norm(&to_f64(&x), &scale, f64::from(EPS)), &weights, cols);
    let (x, branch) = (upload(&client, &x), upload(&client, &branch));
    let (branch_scale, scale) = (upload(&client, &branch_scale), upload(&client, &scale));
    for tiling in integer_tilings(&hardware, &matrix.layout, 1) {
        let (out, stream) = (poisoned(&client, batch * rows), poisoned(&client, batch * cols));
        let input = Input::Normed { x: &x, scale: &scale, eps: EPS };
        matvec(&client, input, &matrix, &out, batch, tiling);
        assert_close(&download(&client, &out), &normed, 1.0, &format!("normed {tiling:?}"));
        let (branch_scale, scale, stream) = (&branch_scale, &scale, &stream);
        let input = Input::Residual { x: &x, branch: &branch, branch_scale, scale, stream, eps: EPS };
        matvec(&client, input, &matrix, &out, batch, tiling);
        assert_close(&download(&client, &out), &expected, 1.0, &format!("{tiling:?}"));
        let h: Vec<(f64, f64)> = h.iter().map(|h| (*h, 4.0)).collect();
        assert_close(&download(&client, stream), &h, 1e-6, "stream");
    }
}

/// An H100: 132 multiprocessors.
const H100: Hardware = Hardware {
    lanes: 32,
    plane_operations: true,
    shared_bytes: 232_448,
    units: 132 * 1024,
    max_cubes: i32::MAX as usize,
    integer_dots: true,
    native_halves: true,
    whole_blocks: false,
};

/// Format, rows and columns, rows that a result takes, whether the input is staged -> words, units, rows, unroll.
type Choice = (TensorFormat, [usize; 2], usize, bool, [usize; 4]);

#[test]
fn divisions_are_chosen_by_format_and_shape() {
    use TensorFormat::{BF16, Q4_0, Q8_0};
    let choices: [Choice; 54] = [
        (BF16, [1536, 1152], 1, true, [2, 32, 1, 9]),
        (BF16, [1152, 1024], 1, false, [2, 64, 1, 4]),
        (BF16, [13824, 1152], 2, true, [2, 16, 2, 5]),
        (BF16, [1152, 6912], 1, false, [2, 128, 1, 7]),
        (BF16, [262144, 1152], 1, true, [2, 16, 1, 9]),
        (BF16, [1536, 640], 1, true, [2, 32, 1, 5]),
        (BF16, [4096, 2048], 2, true, [4, 16, 2, 4]),
        (BF16, [4096, 2560], 1, true, [2, 32, 1, 10]),
        (BF16, [2560, 2048], 1, false, [2, 64, 1, 8]),
        (BF16, [20480, 2560], 2, true, [2, 32, 2, 5]),
        (BF16, [2560, 10240], 1, false, [2, 128, 1, 10]),
        (BF16, [262208, 2560], 1, true, [2, 32, 1, 10]),
        (BF16, [8192, 3840], 1, true, [2, 32, 1, 10]),
        (BF16, [30720, 3840], 2, true, [2, 64, 2, 5]),
        (BF16, [3840, 15360], 1, false, [2, 128, 1, 10]),
        (BF16, [8192, 5376], 1, true, [4, 32, 1, 7]),
        (BF16, [43008, 5376], 2, true, [2, 16, 2, 5]),
        (BF16, [5376, 21504], 1, false, [4, 128, 1, 7]),
        (Q8_0, [1536, 1152], 1, true, [2, 32, 1, 5]),
        (Q8_0, [1152, 1024], 1, false, [2, 32, 1, 4]),
        (Q8_0, [13824, 1152], 2, true, [4, 8, 2, 3]),
        (Q8_0, [1152, 6912], 1, false, [4, 64, 1, 7]),
        (Q8_0, [262144, 1152], 1, true, [4, 8, 4, 2]),
        (Q8_0, [1536, 640], 1, true, [2, 16, 1, 5]),
        (Q8_0, [4096, 2048], 2, true, [4, 16, 2, 4]),
        (Q8_0, [4096, 2560], 1, true, [2, 32, 1, 10]),
        (Q8_0, [2560, 2048], 1, false, [4, 16, 1, 8]),
        (Q8_0, [20480, 2560], 2, true, [4, 8, 2, 4]),
        (Q8_0, [2560, 10240], 1, false, [4, 32, 1, 7]),
        (Q8_0, [262208, 2560], 1, true, [4, 16, 4, 2]),
        (Q8_0, [8192, 3840], 1, true, [4, 16, 1, 8]),
        (Q8_0, [30720, 3840], 2, true, [4, 16, 2, 4]),
        (Q8_0, [3840, 15360], 1, false, [4, 64, 1, 8]),
        (Q8_0, [8192, 5376], 1, true, [4, 16, 1, 7]),
        (Q8_0, [43008, 5376], 2, true, [4, 8, 2, 4]),
        (Q8_0, [5376, 21504], 1, false, [4, 32, 1, 7]),
        (Q4_0, [1536, 1152], 1, true, [2, 16, 1, 5]),
        (Q4_0, [1152, 1024], 1, false, [2, 16, 1, 4]),
        (Q4_0, [13824, 1152], 2, true, [2, 16, 2, 5]),
        (Q4_0, [1152, 6912], 1, false, [4, 32, 1, 7]),
        (Q4_0, [262144, 1152], 1, true, [4, 4, 4, 2]),
        (Q4_0, [1536, 640], 1, true, [2, 16, 1, 3]),
        (Q4_0, [4096, 2048], 2, true, [4, 16, 2, 4]),
        (Q4_0, [4096, 2560], 1, true, [2, 16, 1, 10]),
        (Q4_0, [2560, 2048], 1, false, [2, 16, 1, 8]),
        (Q4_0, [20480, 2560], 2, true, [2, 16, 2, 5]),
        (Q4_0, [2560, 10240], 1, false, [2, 32, 1, 10]),
        (Q4_0, [262208, 2560], 1, true, [4, 8, 4, 2]),
        (Q4_0, [8192, 3840], 1, true, [4, 8, 1, 8]),
        (Q4_0, [30720, 3840], 2, true, [4, 8, 2, 4]),
        (Q4_0, [3840, 15360], 1, false, [4, 32, 1, 8]),
        (Q4_0, [8192, 5376], 1, true, [4, 8, 1, 7]),
        (Q4_0, [43008, 5376], 2, true, [4, 8, 2, 3]),
        (Q4_0, [5376, 21504], 1, false, [4, 32, 1, 7]),
    ];
    for (format, [rows, cols], outputs, stage, expected) in choices {
        let layout = Layout::new(format, rows, cols).expect("whole blocks");
        let tiling = Tiling::choose(&H100, &layout, 1, outputs, stage, Precision::Fast);
        let found = [tiling.vector_words, tiling.groups.units(), tiling.rows, tiling.unroll];
        assert_eq!(found, expected, "{format} {rows} x {cols}");
        assert_eq!(tiling.activations == Activations::Int8, layout.has_blocks());
    }
}

/// An H100 through Vulkan, which doesn't say how many multiprocessors it has.
const VULKAN: Hardware =
    Hardware { shared_bytes: 48 << 10, units: 128 * 1024, whole_blocks: true, max_cubes: 65_535, ..H100 };

#[test]
fn through_vulkan_several_rows_take_whole_blocks_and_floats_wide_lines() {
    use TensorFormat::{BF16, Q4_0};
    // Within 5% of the best of all divisions, as measured on that card.
    let choices = [
        (Q4_0, [1536, 1152], 8, 1, [4, 16, 1, 3]),
        (Q4_0, [1152, 1024], 8, 1, [4, 16, 1, 2]),
        (Q4_0, [13824, 1152], 8, 2, [4, 8, 4, 2]),
        (BF16, [13824, 1152], 1, 2, [2, 32, 2, 5]),
        (BF16, [1152, 6912], 1, 1, [2, 128, 1, 7]),
        (BF16, [262144, 1152], 1, 1, [2, 32, 1, 9]),
    ];
    for (format, [rows, cols], batch, outputs, expected) in choices {
        let layout = Layout::new(format, rows, cols).expect("whole blocks");
        let stage = cols == 1152;
        let tiling = Tiling::choose(&VULKAN, &layout, batch, outputs, stage, Precision::Fast);
        let found = [tiling.vector_words, tiling.groups.units(), tiling.rows, tiling.unroll];
        assert_eq!(found, expected, "{format} {rows} x {cols}, {batch} rows");
    }
}

#[test]
fn every_choice_covers_its_row_and_keeps_to_its_registers() {
    for format in TensorFormat::ALL {
        for cols in [256, 768, 1024, 2048, 2560, 3840, 5376, 6912, 10240, 15360, 21504] {
            for (rows, outputs, batch) in [(640, 1, 1), (4096, 1, 8), (13824, 2, 1), (262_144, 1, 3)] {
                let Ok(layout) = Layout::new(format, rows, cols) else { continue };
                for precision in [Precision::Exact, Precision::Fast] {
                    let tiling = Tiling::choose(&H100, &layout, batch, outputs, true, precision);
                    let product = Product { layout, batch, tiling };
                    assert!(product.turns() * tiling.unroll * tiling.groups.units() >= product.items());
                    assert!(tiling.rows.is_multiple_of(outputs), "{tiling:?}");
                    assert!(
                        product.loads() * tiling.vector_words <= 40 && product.results() <= 32,
                        "{tiling:?}"
                    );
                    assert!(tiling.vector_words * layout.weights_per_word() >= 4, "{tiling:?}");
                    assert!(tiling.groups.cube_units() <= 256, "{tiling:?}");
                    let exact = precision == Precision::Exact;
                    assert!(!(exact && tiling.activations == Activations::Int8), "{tiling:?}");
                }
            }
        }
    }
}

#[test]
fn small_devices_have_room_for_the_input_and_the_sums_over_a_cube() {
    let small = Hardware { shared_bytes: 16 << 10, plane_operations: false, ..H100 };
    for format in TensorFormat::ALL {
        for (cols, batch) in [(2560, 1), (6912, 1), (10240, 1), (21504, 1), (1280, 8)] {
            let Ok(layout) = Layout::new(format, 4096, cols) else { continue };
            for precision in [Precision::Exact, Precision::Fast] {
                let tiling = Tiling::choose(&small, &layout, batch, 1, true, precision);
                let product = Product { layout, batch, tiling };
                let staged = 16 * product.staged_quads() + 8 * product.staged_octets();
                // Up to three sums over the cube, each with a number of every unit.
                let sums = 4 * (product.staged_scales() + 3 * tiling.groups.cube_units());
                assert!(staged + sums <= small.shared_bytes, "{staged} + {sums} of {layout:?}, {tiling:?}");
                // The hidden sizes of the 1B and the 4B are staged, and the intermediate ones as integers.
                let integers = precision == Precision::Fast && layout.has_blocks();
                assert!(tiling.staged || batch > 1 || cols > if integers { 10240 } else { 2560 });
            }
        }
    }
}

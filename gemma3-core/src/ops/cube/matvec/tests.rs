use super::*;
use crate::checkpoint::TensorFormat;
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

fn tilings(machine: &Machine, layout: &Layout, batch: usize, outputs: usize) -> Vec<Tiling> {
    let mut tilings = Vec::new();
    for stage in [false, true] {
        tilings.push(Tiling::choose(machine, layout, batch, outputs, stage));
    }
    for (vector_words, planes, rows, passes, unroll, staged) in
        [(4, 1, 1, 1, 1, false), (4, 2, 2, 1, 2, true), (2, 1, 4, 2, 2, true), (1, 4, 2, 3, 3, false)]
    {
        if vector_words * layout.weights_per_word() >= 4 {
            let groups = machine.groups(planes);
            let rows = rows.max(outputs);
            tilings.push(Tiling { vector_words, groups, rows, passes, unroll, staged });
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
    let machine = Machine::of(&client);
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
            for tiling in tilings(&machine, &matrix.layout, batch, 1).into_iter().take(count) {
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
    let machine = Machine::of(&client);
    for format in [TensorFormat::BF16, TensorFormat::Q4_0] {
        let mut random = Random::new(8);
        let (matrix, weights) = random_matrix(&client, format, 21, 96, &mut random);
        let x = random.floats(MAX_BATCH * 96);
        let out = poisoned(&client, MAX_BATCH * 21);
        let tiling = Tiling::choose(&machine, &matrix.layout, MAX_BATCH, 1, true);
        matvec(&client, Input::Plain { x: &upload(&client, &x) }, &matrix, &out, MAX_BATCH, tiling);
        let expected = product(&to_f64(&x), &weights, 96);
        assert_close(&download(&client, &out), &expected, TOLERANCE, &format!("{format}"));
    }
}

#[test]
fn a_norm_can_come_first() {
    let Some(client) = client() else { return };
    let machine = Machine::of(&client);
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
            for tiling in tilings(&machine, &matrix.layout, batch, 1).iter().filter(|tiling| tiling.staged) {
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
    let machine = Machine::of(&client);
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
    for tiling in tilings(&machine, &matrix.layout, batch, 1).iter().filter(|tiling| tiling.staged) {
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
    let machine = Machine::of(&client);
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
        for tiling in tilings(&machine, &matrix.layout, batch, 2).iter().filter(|tiling| tiling.staged) {
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

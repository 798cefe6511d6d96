use cubecl::ir::{ElemType, FloatKind};

use super::plan::has_cooperative;
use super::*;
use crate::formats::TensorFormat;
use crate::ops::Precision;
use crate::ops::cube::matvec::{Hardware, Input};
use crate::ops::cube::testing::*;

/// Sums of f32 in one chain, each term off by 2^-24; of block formats with minima, scaled sums cancel to some tenths
/// of their sizes.
const EXACT: f64 = 2e-5;

/// Both factors of a term are rounded to 8 bits, each off by 2^-9 of its size at most: 2^-8 for the term, and
/// so for the sum of the terms' sizes. The sums themselves are f32.
const ROUNDED: f64 = 1.0 / 256.0 + EXACT;

/// The same of 11 bits, or 10 where a device cuts off in the place of rounding: each factor is off by 2^-10, a term by
/// 2^-9. What small numbers lose beside large ones of their row or matrix is beyond 2^-37 of these.
const HALVES: f64 = 1.0 / 512.0 + EXACT;

/// What rounding an output to 8 bits adds, of its own size.
const ROUNDED_OUTPUT: f64 = 1.0 / 512.0;

/// The same where sixteen terms at a time are added up in f16: each addition is off by 2^-11 of the sum so far, which is
/// no more than the sum of the sizes.
const RUNS: f64 = 1.0 / 512.0 + 16.0 / 2048.0 + EXACT;

const EPS: f32 = 1e-6;

fn cols(format: TensorFormat) -> usize {
    match format {
        // The last tile of columns is not full.
        TensorFormat::F32 | TensorFormat::F16 | TensorFormat::BF16 => 156,
        TensorFormat::Q4_K | TensorFormat::Q5_K | TensorFormat::Q6_K => 256,
        _ => 160,
    }
}

/// What a plan's products are allowed to be off by, and the rows that it takes.
fn precision(plan: &Plan) -> (f64, RowFormat) {
    match plan {
        Plan::Registers(tile) => (tolerance(tile.numbers.row_format(), None), tile.numbers.row_format()),
        Plan::Tensor(tile) => {
            (tolerance(tile.engine.row_format(), Some(tile.engine)), tile.engine.row_format())
        }
    }
}

/// What products of rows of a format are allowed to be off by, by an instruction or in registers.
fn tolerance(format: RowFormat, engine: Option<Engine>) -> f64 {
    match (format, engine) {
        (RowFormat::F32, _) => EXACT,
        (RowFormat::Bf16, _) => ROUNDED,
        (RowFormat::F16, Some(_)) => HALVES,
        (RowFormat::F16, None) => RUNS,
    }
}

/// Every tile of the exact kernel.
fn exact_plans() -> Vec<Plan> {
    RegisterTile::ALL.map(Plan::Registers).to_vec()
}

/// Every tile of pairs of f16, where the device has these.
fn half_plans(client: &Client) -> Vec<Plan> {
    let has_halves = client.properties().supports_type(ElemType::Float(FloatKind::F16));
    let tiles = RegisterTile::ALL.into_iter().filter(|_| has_halves);
    tiles.map(|tile| Plan::Registers(tile.of(Numbers::F16))).collect()
}

/// Divisions for cooperative matrices: one and two stages, all depths, planes in both directions, parts; one tile ahead,
/// as many as there are stages, more, and more than a part has.
fn cooperative_plans(client: &Client) -> Vec<Plan> {
    if !has_cooperative(client) {
        return vec![];
    }
    let processor = Processor::of(client);
    let small = Tile::cooperative([32, 128, 64], [1, 4], 2);
    let tiles = [
        small,
        Tile { splits: 3, ..small },
        Tile::cooperative([128, 128, 32], [2, 2], 2),
        Tile::cooperative([64, 64, 64], [2, 1], 1),
        Tile::cooperative([128, 256, 16], [2, 4], 2),
        Tile::cooperative([16, 64, 32], [1, 2], 2),
        Tile::cooperative([128, 128, 32], [2, 2], 2).ahead(2),
        Tile::cooperative([64, 64, 64], [2, 1], 1).ahead(2),
        Tile::cooperative([64, 128, 16], [2, 2], 2).ahead(4),
        Tile { splits: 3, ..small.ahead(3) },
    ];
    let tiles = tiles.map(|tile| processor.of_planes(tile)).into_iter();
    tiles.filter(|tile| tile.shared_bytes() <= processor.shared_bytes).map(Plan::Tensor).collect()
}

/// The same of widths that are no power of two, with odd numbers of matrices along the rows of a plane: not of gates.
fn uneven_plans(client: &Client) -> Vec<Plan> {
    if !has_cooperative(client) {
        return vec![];
    }
    let processor = Processor::of(client);
    let tiles = [
        Tile::cooperative([128, 144, 32], [4, 1], 2),
        Tile::cooperative([128, 160, 32], [2, 2], 1).ahead(2),
        Tile::cooperative([128, 192, 32], [2, 4], 1),
    ];
    let tiles = tiles.map(|tile| processor.of_planes(tile)).into_iter();
    tiles.filter(|tile| tile.shared_bytes() <= processor.shared_bytes).map(Plan::Tensor).collect()
}

/// Plans for rows of f16.
fn plans_of_halves(client: &Client) -> Vec<Plan> {
    let mut plans = cooperative_plans(client);
    plans.extend(half_plans(client).first());
    plans
}

/// Plans in registers of which the others differ in sizes alone, and those that the device's tensor cores have.
fn plans(client: &Client) -> Vec<Plan> {
    let [first, .., last] = RegisterTile::ALL;
    let mut plans = [RegisterTile { splits: 3, ..first }, last].map(Plan::Registers).to_vec();
    plans.extend(half_plans(client).first());
    plans.extend(tensor_plans(client));
    plans
}

/// Those that the device's tensor cores have.
fn tensor_plans(client: &Client) -> Vec<Plan> {
    let engine = Processor::of(client).engine;
    let mut plans = Vec::new();
    plans.extend(cooperative_plans(client));
    if matches!(engine, Some(Engine::Planes | Engine::Warpgroups)) {
        let small = Tile::planes(32, 64, 1, 4, 4);
        plans.extend([small, Tile { splits: 3, ..small }, Tile::planes(128, 128, 2, 4, 3)].map(Plan::Tensor));
    }
    if engine == Some(Engine::Warpgroups) {
        plans.extend([Tile::warpgroups(128, 128, 3), Tile::warpgroups(128, 256, 4)].map(Plan::Tensor));
    }
    plans
}

fn poisoned_rows(client: &Client, format: RowFormat, rows: usize, cols: usize) -> Rows {
    Rows { handle: poisoned(client, format.bytes(rows, cols) / 4), format }
}

/// Random rows of a format and their numbers before rounding.
fn random_rows(
    client: &Client,
    format: RowFormat,
    rows: usize,
    cols: usize,
    random: &mut Random,
) -> (Rows, Vec<f32>) {
    let x = random.floats(rows * cols);
    (written(client, &x, format, rows, cols), x)
}

/// Numbers as rows of a format.
fn written(client: &Client, x: &[f32], format: RowFormat, rows: usize, cols: usize) -> Rows {
    let out = poisoned_rows(client, format, rows, cols);
    write_rows(client, &Hardware::of(client), Input::Plain { x: &upload(client, x) }, &out, rows, cols);
    out
}

/// A matrix of bf16 and its values.
fn bf16_matrix(client: &Client, weights: &[f32], cols: usize) -> (PackedMatrix, Vec<f32>) {
    let weights: Vec<half::bf16> = weights.iter().map(|w| half::bf16::from_f32(*w)).collect();
    let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    let matrix = PackedMatrix::upload(client, TensorFormat::BF16, cols, &[&bytes]).expect("whole rows");
    (matrix, weights.iter().map(|w| w.to_f32()).collect())
}

#[test]
fn numbers_beyond_the_range_of_halves_are_multiplied() {
    let Some(client) = client() else { return };
    let (rows, outputs, cols) = (9, 70, 160);
    let mut random = Random::new(47);
    for weights_size in [1e-12, 1.0, 1e9] {
        let weights: Vec<f32> = random.floats(outputs * cols).iter().map(|w| w * weights_size).collect();
        let (matrix, weights) = bf16_matrix(&client, &weights, cols);
        let mut x = random.floats(rows * cols);
        // Far above f16, far below it, nothing, one number far above the others, and more of each.
        for (row, size) in [(0, 1e6), (1, 1e-9), (2, 0.0), (4, 1e25), (5, 1e-20)] {
            x[row * cols..][..cols].iter_mut().for_each(|x| *x *= size);
        }
        x[3 * cols + 5] = 3e5;
        let expected = product(&to_f64(&x), &weights, cols);
        for plan in plans_of_halves(&client) {
            let (tolerance, format) = precision(&plan);
            let input = written(&client, &x, format, rows, cols);
            let out = poisoned_rows(&client, RowFormat::F32, rows, outputs);
            launch(&client, plan, &input, &matrix, Output::plain(&out), rows, None);
            let what = format!("{weights_size}, {plan:?}");
            assert_close(&values(&client, &out, rows, outputs), &expected, tolerance, &what);
        }
    }
}

#[test]
fn floats_become_halves_before_they_are_multiplied() {
    let Some(client) = client() else { return };
    let (rows, outputs, cols) = (17, 70, 68);
    let mut random = Random::new(49);
    let weights: Vec<f32> = random.floats(outputs * cols).iter().map(|w| w * 1e9).collect();
    let matrix = PackedMatrix::upload_as_halves(&client, cols, &weights).expect("whole rows");
    for plan in cooperative_plans(&client) {
        let (tolerance, format) = precision(&plan);
        let (x, numbers) = random_rows(&client, format, rows, cols, &mut random);
        let out = poisoned_rows(&client, RowFormat::F32, rows, outputs);
        launch(&client, plan, &x, &matrix, Output::plain(&out), rows, None);
        let expected = product(&to_f64(&numbers), &weights, cols);
        let what = format!("{plan:?}");
        assert_close(&values(&client, &out, rows, outputs), &expected, tolerance, &what);
    }
}

#[test]
fn what_is_not_finite_stays_in_its_rows_and_columns() {
    let Some(client) = client() else { return };
    let (rows, outputs, cols) = (20, 70, 64);
    let mut random = Random::new(48);
    let mut weights = random.floats(outputs * cols);
    weights[7 * cols + 3] = f32::INFINITY;
    weights[9 * cols + 8] = f32::NAN;
    let (matrix, weights) = bf16_matrix(&client, &weights, cols);
    let mut x = random.floats(rows * cols);
    x[4 * cols + 1] = f32::NEG_INFINITY;
    x[11 * cols + 60] = f32::NAN;
    let expected = product(&to_f64(&x), &weights, cols);
    for plan in plans_of_halves(&client) {
        let (tolerance, format) = precision(&plan);
        let input = written(&client, &x, format, rows, cols);
        let out = poisoned_rows(&client, RowFormat::F32, rows, outputs);
        launch(&client, plan, &input, &matrix, Output::plain(&out), rows, None);
        for (at, (found, (sum, size))) in
            values(&client, &out, rows, outputs).iter().zip(&expected).enumerate()
        {
            let (row, output) = (at / outputs, at % outputs);
            // Finite numbers beside an infinite one of their row may become zero, and their infinity with it.
            let is_hit = [4, 11].contains(&row) || [7, 9].contains(&output);
            assert_eq!(found.is_finite(), !is_hit, "{found} in row {row}, output {output}, {plan:?}");
            let error = (f64::from(*found) - sum).abs();
            assert!(is_hit || error <= tolerance * size, "{found}, not {sum}, {plan:?}");
        }
    }
}

#[test]
fn many_rows_are_multiplied_by_every_format() {
    let Some(client) = client() else { return };
    for format in TensorFormat::ALL {
        let cols = cols(format);
        // A tile and a bit in both directions, and an odd number of outputs.
        let (rows, outputs) = (70, 67);
        let mut random = Random::new(40);
        let (matrix, weights) = random_matrix(&client, format, outputs, cols, &mut random);
        // Compiling takes most of the time: one tile for each format, the next for the next.
        let one = |plans: Vec<Plan>| plans.into_iter().cycle().nth(format as usize);
        let in_registers = one(exact_plans()).into_iter().chain(one(half_plans(&client)));
        for plan in in_registers.chain(tensor_plans(&client)) {
            let (tolerance, from) = precision(&plan);
            let (x, numbers) = random_rows(&client, from, rows, cols, &mut random);
            let out = poisoned_rows(&client, RowFormat::F32, rows, outputs);
            launch(&client, plan, &x, &matrix, Output::plain(&out), rows, None);
            let expected = product(&to_f64(&numbers), &weights, cols);
            let what = format!("{format} {plan:?}");
            assert_close(&values(&client, &out, rows, outputs), &expected, tolerance, &what);
        }
    }
}

#[test]
fn any_number_of_rows_is_multiplied() {
    let Some(client) = client() else { return };
    let (format, outputs, cols) = (TensorFormat::BF16, 40, 64);
    let mut random = Random::new(41);
    let (matrix, weights) = random_matrix(&client, format, outputs, cols, &mut random);
    for rows in [1, 9, 16, 17, 33, 65] {
        for precision in [Precision::Exact, Precision::Fast] {
            let processor = Processor::of(&client).with_precision(precision);
            let from = processor.row_format(precision);
            let tolerance = tolerance(from, processor.engine);
            let (x, numbers) = random_rows(&client, from, rows, cols, &mut random);
            let out = poisoned_rows(&client, RowFormat::F32, rows, outputs);
            linear(&client, &processor, &x, &matrix, Output::plain(&out), rows, None);
            let expected = product(&to_f64(&numbers), &weights, cols);
            assert_close(&values(&client, &out, rows, outputs), &expected, tolerance, &format!("{rows}"));
        }
    }
}

#[test]
fn in_exact_mode_a_row_does_not_depend_on_the_others() {
    let Some(client) = client() else { return };
    let (format, outputs, cols) = (TensorFormat::Q4_0, 70, 1056);
    let mut random = Random::new(49);
    let (matrix, _) = random_matrix(&client, format, outputs, cols, &mut random);
    let processor = Processor::of(&client).with_precision(Precision::Exact);
    let x = random.floats(140 * cols);
    // As many rows as the smallest tile has, more of another, and more of the largest.
    let alike = [9, 33, 140].map(|rows| {
        let out = poisoned(&client, rows * outputs);
        let x = written(&client, &x[..rows * cols], RowFormat::F32, rows, cols);
        linear(&client, &processor, &x, &matrix, Output::plain(&Rows::f32(&out)), rows, None);
        let bits: Vec<u32> = download(&client, &out)[..9 * outputs].iter().map(|x| x.to_bits()).collect();
        bits
    });
    assert!(alike[0] == alike[1] && alike[0] == alike[2]);
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

#[test]
fn gates_meet_their_up_projections() {
    let Some(client) = client() else { return };
    for format in [TensorFormat::BF16, TensorFormat::Q4_0] {
        let (rows, outputs, cols) = (35, 37, 160);
        let mut random = Random::new(42);
        let (matrix, weights) = random_matrix(&client, format, 2 * outputs, cols, &mut random);
        for plan in plans(&client) {
            let (tolerance, from) = precision(&plan);
            let (x, numbers) = random_rows(&client, from, rows, cols, &mut random);
            let gates = product(&to_f64(&numbers), &weights[..outputs * cols], cols);
            let ups = product(&to_f64(&numbers), &weights[outputs * cols..], cols);
            let to = from.of_products();
            let rounding = if to == RowFormat::F32 { 0.0 } else { ROUNDED_OUTPUT / tolerance };
            // gelu has a slope of at most 1.13, so that errors of both factors add up with the size of the
            // other.
            let expected: Vec<(f64, f64)> = (gates.iter().zip(&ups))
                .map(|((gate, gate_size), (up, up_size))| {
                    let value = gelu(*gate) * up;
                    let size =
                        1.13 * gate_size * (up.abs() + tolerance * up_size) + gelu(*gate).abs() * up_size;
                    (value, size + rounding * value.abs() + 1e-3)
                })
                .collect();
            let out = poisoned_rows(&client, to, rows, outputs);
            launch(&client, plan, &x, &matrix, Output::gated(&out), rows, None);
            let what = format!("{format} {plan:?}");
            assert_close(&values(&client, &out, rows, outputs), &expected, tolerance, &what);
        }
    }
}

#[test]
fn products_write_rows_of_halves_by_what_their_sums_cannot_exceed() {
    let Some(client) = client() else { return };
    let (rows, outputs, cols) = (140, 210, 160);
    let mut random = Random::new(51);
    let weights: Vec<f32> = random.floats(outputs * cols).iter().map(|w| w * 1e3).collect();
    let matrix = PackedMatrix::upload_as_halves(&client, cols, &weights).expect("whole rows");
    let bias: Vec<f32> = random.floats(outputs).iter().map(|b| b * 1e4).collect();
    let largest_bias = bias.iter().map(|b| b.abs()).fold(0.0, f32::max);
    let bias_at = upload(&client, &bias);
    // Rows of any size, one of zeros.
    let mut x = random.floats(rows * cols);
    for (row, size) in [(0, 1e6), (1, 1e-9), (2, 0.0), (4, 1e20), (135, 1e-20)] {
        x[row * cols..][..cols].iter_mut().for_each(|x| *x *= size);
    }
    let sums = product(&to_f64(&x), &weights, cols);
    let plans = cooperative_plans(&client).into_iter().chain(uneven_plans(&client));
    for plan in plans.collect::<Vec<_>>() {
        let (tolerance, format) = precision(&plan);
        let input = written(&client, &x, format, rows, cols);
        for with_gelu in [false, true] {
            let expected: Vec<(f64, f64)> = (sums.iter().enumerate())
                .map(|(at, (sum, size))| {
                    let sum = sum + f64::from(bias[at % outputs]);
                    let value = if with_gelu { gelu(sum) } else { sum };
                    // Rounded once more, to 11 bits.
                    (value, 1.13 * size + 1.0 + value.abs() / 1024.0 / tolerance)
                })
                .collect();
            let ending = Ending { bias: &bias_at, largest_bias, gelu: with_gelu, added: None };
            let out = poisoned_rows(&client, RowFormat::F16, rows, outputs);
            launch(&client, plan, &input, &matrix, Output::ending(&out, ending), rows, None);
            let what = format!("gelu {with_gelu}, {plan:?}");
            assert_close(&values(&client, &out, rows, outputs), &expected, tolerance, &what);
        }
    }
}

#[test]
fn rows_are_normalized_on_the_way() {
    let Some(client) = client() else { return };
    let hardware = Hardware::of(&client);
    let mut formats = vec![(RowFormat::F32, 1e-6)];
    if Processor::of(&client).row_format(Precision::Fast) == RowFormat::Bf16 {
        formats.push((RowFormat::Bf16, 2.0 * ROUNDED_OUTPUT));
    }
    if has_cooperative(&client) {
        formats.push((RowFormat::F16, ROUNDED_OUTPUT));
    }
    for (format, tolerance) in formats {
        // Less than a quad for each unit, and more.
        for cols in [36, 1220] {
            let rows = 3;
            let mut random = Random::new(43);
            let (x, branch) = (random.floats(rows * cols), random.floats(rows * cols));
            let (branch_scale, scale) = (random.floats(cols), random.floats(cols));
            let sized = |values: Vec<f64>| values.into_iter().map(|value| (value, 4.0)).collect::<Vec<_>>();
            let (x_at, scale_at) = (upload(&client, &x), upload(&client, &scale));

            let out = poisoned_rows(&client, format, rows, cols);
            let input = Input::Normed { x: &x_at, scale: &scale_at, eps: EPS };
            write_rows(&client, &hardware, input, &out, rows, cols);
            let expected = sized(rms_norm(&to_f64(&x), &scale, f64::from(EPS)));
            assert_close(&values(&client, &out, rows, cols), &expected, tolerance, "normed");

            let (out, stream) = (poisoned_rows(&client, format, rows, cols), poisoned(&client, rows * cols));
            let input = Input::Residual {
                x: &x_at,
                branch: &upload(&client, &branch),
                branch_scale: &upload(&client, &branch_scale),
                scale: &scale_at,
                stream: &stream,
                eps: EPS,
            };
            write_rows(&client, &hardware, input, &out, rows, cols);
            let added = rms_norm(&to_f64(&branch), &branch_scale, f64::from(EPS));
            let h: Vec<f64> = added.iter().zip(&x).map(|(added, x)| added + f64::from(*x)).collect();
            let expected = sized(rms_norm(&h, &scale, f64::from(EPS)));
            assert_close(&values(&client, &out, rows, cols), &expected, tolerance, "residual");
            assert_close(&download(&client, &stream), &sized(h), 1e-6, "stream");
        }
    }
}

#[test]
fn parts_of_a_product_are_added_up_by_who_reads_them() {
    let Some(client) = client() else { return };
    let hardware = Hardware::of(&client);
    // One part in exact mode. With few rows and few outputs several otherwise.
    let (rows, outputs, cols) = (5, 68, 2048);
    let mut random = Random::new(45);
    let (matrix, weights) = random_matrix(&client, TensorFormat::BF16, outputs, cols, &mut random);
    for precision in [Precision::Exact, Precision::Fast] {
        let processor = Processor::of(&client).with_precision(precision);
        let format = processor.row_format(precision);
        let (x, numbers) = random_rows(&client, format, rows, cols, &mut random);
        let parts = part_count(&processor, &matrix.layout, format, rows);
        assert_eq!(parts > 1, precision == Precision::Fast, "{parts}");
        let divided = poisoned(&client, parts * rows * outputs);
        assert_eq!(linear_parts(&client, &processor, &x, &matrix, &divided, rows), parts);
        let out = poisoned(&client, rows * outputs);
        let input = Input::Plain { x: &divided };
        write_rows_of_parts(&client, &hardware, input, parts, &Rows::f32(&out), rows, outputs);
        let expected = product(&to_f64(&numbers), &weights, cols);
        assert_close(
            &download(&client, &out),
            &expected,
            tolerance(format, processor.engine),
            "the sum of the parts",
        );
    }
}

#[test]
fn a_branch_in_parts_joins_the_stream() {
    let Some(client) = client() else { return };
    let (hardware, rows, cols, parts) = (Hardware::of(&client), 3, 1220, 4);
    let mut random = Random::new(46);
    let (x, branch) = (random.floats(rows * cols), random.floats(parts * rows * cols));
    let (branch_scale, scale) = (random.floats(cols), random.floats(cols));
    let (out, stream) = (poisoned(&client, rows * cols), poisoned(&client, rows * cols));
    let input = Input::Residual {
        x: &upload(&client, &x),
        branch: &upload(&client, &branch),
        branch_scale: &upload(&client, &branch_scale),
        scale: &upload(&client, &scale),
        stream: &stream,
        eps: EPS,
    };
    write_rows_of_parts(&client, &hardware, input, parts, &Rows::f32(&out), rows, cols);
    let sums = |at: usize| (0..parts).map(|part| f64::from(branch[part * rows * cols + at])).sum::<f64>();
    let whole: Vec<f64> = (0..rows * cols).map(sums).collect();
    let added = rms_norm(&whole, &branch_scale, f64::from(EPS));
    let h: Vec<f64> = added.iter().zip(&x).map(|(added, x)| added + f64::from(*x)).collect();
    let sized = |values: Vec<f64>| values.into_iter().map(|value| (value, 4.0)).collect::<Vec<_>>();
    let normed = rms_norm(&h, &scale, f64::from(EPS));
    assert_close(&download(&client, &out), &sized(normed), 1e-6, "normed");
    assert_close(&download(&client, &stream), &sized(h), 1e-6, "stream");
}

#[test]
fn sums_are_finished_before_they_are_stored() {
    let Some(client) = client() else { return };
    // Rows that are added begin anew within a tile of the product; an odd number of outputs.
    let (rows, added_rows, outputs, cols) = (35, 20, 67, 160);
    let mut random = Random::new(44);
    let (matrix, weights) = random_matrix(&client, TensorFormat::BF16, outputs, cols, &mut random);
    let (bias, added) = (random.floats(outputs), random.floats(added_rows * outputs));
    let (bias_at, added_at) = (upload(&client, &bias), upload(&client, &added));
    for plan in plans(&client).into_iter().chain(uneven_plans(&client)) {
        let (tolerance, format) = precision(&plan);
        let to = format.of_products();
        let (x, numbers) = random_rows(&client, format, rows, cols, &mut random);
        let sums = product(&to_f64(&numbers), &weights, cols);
        for (with_gelu, with_added) in [(false, false), (true, false), (false, true), (true, true)] {
            let expected: Vec<(f64, f64)> = (sums.iter().enumerate())
                .map(|(at, (sum, size))| {
                    let (row, column) = (at / outputs, at % outputs);
                    let sum = sum + f64::from(bias[column]);
                    let value = if with_gelu { gelu(sum) } else { sum };
                    let added = f64::from(added[row % added_rows * outputs + column]);
                    let value = if with_added { value + added } else { value };
                    // gelu has a slope of at most 1.13; results are rounded once more in bf16 rows.
                    let rounding = if to == RowFormat::F32 { 0.0 } else { ROUNDED_OUTPUT / tolerance };
                    (value, 1.13 * size + 1.0 + rounding * value.abs())
                })
                .collect();
            let added = with_added.then_some((&added_at, added_rows));
            let ending = Ending { bias: &bias_at, largest_bias: 1.0, gelu: with_gelu, added };
            let out = poisoned_rows(&client, to, rows, outputs);
            launch(&client, plan, &x, &matrix, Output::ending(&out, ending), rows, None);
            let what = format!("gelu {with_gelu}, added {with_added}, {plan:?}");
            assert_close(&values(&client, &out, rows, outputs), &expected, tolerance, &what);
        }
    }
}

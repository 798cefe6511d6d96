//! What only the image encoder asks of a machine.

use super::*;
use crate::ops::image::{Ending, ImageMachine, LayerNorm, Numbers, PatchShape};

/// Weights \[out, in\] as the encoder loads them.
fn weights<M: ImageMachine>(machine: &M, values: &[f32], out: usize, format: TensorFormat) -> M::Matrix {
    let bytes: Vec<u8> = match format {
        TensorFormat::BF16 => values.iter().flat_map(|w| bf16::from_f32(*w).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|w| w.to_le_bytes()).collect(),
    };
    let (bytes, shape) = (Cow::Owned(bytes), vec![out, values.len() / out]);
    let view = TensorView { file_name: "w", source: "a test", shape, format, bytes, place: None };
    machine.image_matrix(view).expect("a matrix")
}

fn vector<M: Machine>(machine: &M, values: &[f32]) -> M::Vector {
    machine.vector(values.to_vec()).expect("a vector")
}

fn features<M: ImageMachine>(machine: &M, values: &[f32], width: usize) -> M::Features {
    machine.features(values.to_vec(), width).expect("features")
}

fn seen<M: ImageMachine>(machine: &M, x: &M::Features) -> Vec<f32> {
    machine.look_at_features(x).expect("features").wait().expect("their values")
}

/// More rows than are done together, with everything that may follow a product.
#[test]
fn products_and_what_follows_them_equal_their_definition() {
    for format in [TensorFormat::F32, TensorFormat::BF16] {
        for (rows, width, out) in [(1, 64, 24), (9, 40, 33), (1030, 32, 48)] {
            let mut random = Random(11);
            let (x, w) = (random.values(rows * width, 1.0), random.values(out * width, 1.0));
            let (bias, added) = (random.values(out, 1.0), random.values(rows * out, 1.0));
            for (biased, gelu, fewer) in
                [(false, false, None), (true, false, None), (true, true, None), (true, false, Some(1))]
                    .into_iter()
                    .chain((rows % 5 == 0).then_some((true, true, Some(5))))
            {
                let given = [&x[..], &w, &bias, &added[..fewer.map_or(0, |fewer| rows / fewer * out)]];
                fn ended<M: ImageMachine>(
                    m: &M,
                    [x, w, bias, added]: [&[f32]; 4],
                    format: TensorFormat,
                    biased: bool,
                    gelu: bool,
                ) -> Vec<f32> {
                    let (out, width) = (bias.len(), w.len() / bias.len());
                    let (w, bias) = (weights(m, w, out, format), vector(m, bias));
                    let added = (!added.is_empty()).then(|| features(m, added, out));
                    let ending = biased.then_some(Ending { bias: &bias, gelu, added: added.as_ref() });
                    let x = features(m, x, width);
                    let product = m.linear(&x, &w, ending, Numbers::Floats).expect("a product");
                    assert_eq!(m.features_shape(&product), [m.features_shape(&x)[0], out]);
                    seen(m, &product)
                }
                let ours = ended(&cpu(), given, format, biased, gelu);
                let definition = ended(&plain(), given, format, biased, gelu);
                let difference = max_difference(&ours, &definition);
                // Sums of `width` products of numbers up to 1, few ulp off; what follows adds no more.
                let bound = 1.1 * (width + 8) as f32 * f32::EPSILON;
                assert!(
                    difference <= bound,
                    "{format}, {rows} rows, bias {biased}, gelu {gelu}, added {fewer:?}: {difference:e} > {bound:e}"
                );
            }
        }
    }
}

/// What comes out of three products has to be one input of attention, image by image.
#[test]
fn images_attend_as_by_the_definition() {
    for (images, tokens, heads, head_dim) in [(1, 1, 1, 8), (1, 16, 3, 16), (2, 33, 2, 8), (3, 100, 4, 72)] {
        let (rows, width) = (images * tokens, heads * head_dim);
        let mut random = Random(12);
        let x = random.values(rows * 24, 1.0);
        let of_each = [0; 3].map(|_| (random.values(width * 24, 0.3), random.values(width, 0.3)));
        fn attended<M: ImageMachine>(
            m: &M,
            x: &[f32],
            of_each: &[(Vec<f32>, Vec<f32>); 3],
            images: usize,
            heads: usize,
        ) -> [Vec<f32>; 2] {
            let linears =
                of_each.each_ref().map(|(w, b)| (weights(m, w, b.len(), TensorFormat::F32), vector(m, b)));
            let linears = linears.each_ref().map(|(w, b)| (w, b));
            let qkv = m.queries_keys_values(&features(m, x, 24), linears, images, heads).expect("products");
            let all = qkv.each_ref().map(|rows| seen(m, rows)).concat();
            [all, seen(m, &m.full_attention(qkv, images, heads, 0.3).expect("attended"))]
        }
        let [qkv, out] = attended(&cpu(), &x, &of_each, images, heads);
        let [plain_qkv, plain_out] = attended(&plain(), &x, &of_each, images, heads);
        let (of_qkv, of_out) = (max_difference(&qkv, &plain_qkv), max_difference(&out, &plain_out));
        let what = format!("{images} x {tokens}, {heads} x {head_dim}");
        // Sums of 24 products below 0.3, and a bias.
        assert!(of_qkv <= 25.0 * 0.3 * 4.0 * f32::EPSILON, "{what}: {of_qkv:e}");
        // Scores are below 0.3 * 72 * 8² and few ulp off, which in the exponent is a relative error of values below 8.
        let bound = 0.3 * (head_dim * 64) as f32 * 8.0 * 8.0 * f32::EPSILON;
        assert!(of_out <= bound, "{what}: {of_out:e} > {bound:e}");
    }
}

#[test]
fn rows_of_features_are_normalized_as_by_the_definition() {
    for (rows, width) in [(1, 1), (3, 16), (5, 257), (300, 144)] {
        let mut random = Random(13);
        let (x, scale) = (random.values(rows * width, 3.0), random.values(width, 2.0));
        let bias = random.values(width, 1.0);
        fn normed<M: ImageMachine>(m: &M, x: &[f32], scale: &[f32], bias: &[f32]) -> [Vec<f32>; 2] {
            let x = features(m, x, scale.len());
            let layer = LayerNorm { scale: vector(m, scale), bias: vector(m, bias), eps: 1e-6 };
            let layer = m.layer_norm(&x, &layer, Numbers::Floats).expect("normalized");
            [seen(m, &layer), seen(m, &m.rms_norm(&x, &norm(m, scale, 1e-6)).expect("normalized"))]
        }
        let (ours, definition) = (normed(&cpu(), &x, &scale, &bias), normed(&plain(), &x, &scale, &bias));
        let difference = max_difference(&ours.concat(), &definition.concat());
        // Normalized values are below sqrt(width) times the scale; a few ulp of that.
        let bound = 2.0 * ((width as f32).sqrt() * 8.0 + 8.0) * f32::EPSILON;
        assert!(difference <= bound, "[{rows}, {width}]: {difference:e} > {bound:e}");
    }
}

#[test]
fn images_become_patches_and_patches_means_as_by_the_definition() {
    for (images, channels, per_side, patch, size, width) in
        [(1, 3, 4, 14, 2, 12), (2, 3, 6, 2, 3, 40), (3, 1, 1, 5, 1, 7)]
    {
        let shape = PatchShape { channels, side: per_side * patch, patch };
        let mut random = Random(14);
        let pixels = random.values(images * shape.pixels(), 1.0);
        let rows = random.values(images * shape.patches() * width, 1.0);
        fn divided<M: ImageMachine>(m: &M, pixels: &[f32], images: usize, shape: PatchShape) -> Vec<f32> {
            let patches = m.patches(pixels.to_vec(), images, shape).expect("patches");
            assert_eq!(m.features_shape(&patches), [images * shape.patches(), shape.width()]);
            seen(m, &patches)
        }
        assert_eq!(divided(&cpu(), &pixels, images, shape), divided(&plain(), &pixels, images, shape));
        fn means<M: ImageMachine>(m: &M, x: &[f32], width: usize, of: [usize; 3]) -> Vec<f32> {
            let [images, side, size] = of;
            let means = m.mean_of_squares(&features(m, x, width), images, side, size).expect("means");
            let vectors = m.vectors(means).expect("vectors");
            assert_eq!([vectors.len(), vectors.width()], [images * (side / size).pow(2), width]);
            vectors.to_vec().expect("their values")
        }
        let of = [images, per_side, size];
        let difference = max_difference(&means(&cpu(), &rows, width, of), &means(&plain(), &rows, width, of));
        // Means of up to 9 numbers below 1.
        assert!(difference <= 8.0 * f32::EPSILON, "{images} x {per_side}² by {size}: {difference:e}");
    }
}

#[test]
fn features_that_do_not_fit_are_errors() {
    fn check<M: ImageMachine>(m: &M) {
        let x = features(m, &[1.0; 12], 4);
        let (w, bias) = (weights(m, &[1.0; 15], 3, TensorFormat::F32), vector(m, &[0.0; 3]));
        let wide = weights(m, &[1.0; 12], 3, TensorFormat::F32);
        let is_bug = |result: Result<M::Features, MachineError>| {
            assert!(matches!(result, Err(MachineError::Bug { .. })), "{result:?}");
        };
        is_bug(m.features(vec![1.0; 7], 4));
        is_bug(m.features(Vec::new(), 0));
        is_bug(m.linear(&x, &w, None, Numbers::Floats));
        let added = features(m, &[1.0; 6], 3); // Two rows, which three are no multiple of.
        let ending = Ending { bias: &bias, gelu: false, added: Some(&added) };
        is_bug(m.linear(&x, &wide, Some(ending), Numbers::Floats));
        is_bug(m.rms_norm(&x, &norm(m, &[1.0; 3], 1e-6)));
        let layer = LayerNorm { scale: vector(m, &[1.0; 4]), bias: vector(m, &[1.0; 3]), eps: 1e-6 };
        is_bug(m.layer_norm(&x, &layer, Numbers::Floats));
        is_bug(m.full_attention([x.clone(), x.clone(), added], 1, 2, 1.0));
        is_bug(m.full_attention([x.clone(), x.clone(), x.clone()], 2, 2, 1.0));
        is_bug(m.full_attention([x.clone(), x.clone(), x.clone()], 1, 3, 1.0));
        is_bug(m.mean_of_squares(&x, 1, 2, 2));
        is_bug(m.mean_of_squares(&x, 3, 1, 0));
        let shape = PatchShape { channels: 1, side: 4, patch: 2 };
        is_bug(m.patches(vec![1.0; 16], 2, shape));
        is_bug(m.patches(vec![1.0; 16], 1, PatchShape { patch: 3, ..shape }));
        is_bug(m.patches(vec![1.0; 16], 1, PatchShape { patch: 0, ..shape }));
        is_bug(m.patches(Vec::new(), 0, shape));
    }
    check(&cpu());
    check(&plain());
}

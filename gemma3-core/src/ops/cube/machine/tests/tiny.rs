//! A small model.

use super::super::*;
use super::{HEAD_DIM, HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, VOCAB, WINDOW};
use crate::config::LayerType;
use crate::formats::TensorFormat;
use crate::ops::cube::testing::{Random, file_bytes};
use crate::ops::machine::BlockShape;

struct Block {
    norms: [Norm<Vector>; 4],
    heads: Heads<Vector>,
    qkv: Matrix,
    output: Matrix,
    gate_up: Matrix,
    down: Matrix,
}

/// A windowed and a global layer, and what is looked at.
pub(super) struct Tiny {
    pub(super) embedding: Matrix,
    blocks: Vec<Block>,
    norm: Norm<Vector>,
    pub(super) observes: bool,
    /// Added to the stream behind the first block.
    pub(super) added: Option<Vec<f32>>,
    pub(super) seen: Vec<Values>,
    pub(super) keys: Vec<f32>,
}

impl Tiny {
    pub(super) fn new(cube: &Cube) -> Self {
        let mut random = Random::new(5);
        let embedding = matrix(cube, &[(TensorFormat::F32, VOCAB)], HIDDEN, &mut random);
        // The first block's projections lie in one part, the second's apart.
        let formats = [[TensorFormat::F32; 3], [TensorFormat::F32, TensorFormat::F16, TensorFormat::BF16]];
        let windows = [(Some(WINDOW), LayerType::SlidingAttention), (None, LayerType::FullAttention)];
        let blocks =
            formats.into_iter().zip(windows).enumerate().map(|(layer, ([a, b, c], (window, kind)))| {
                let qkv = [(a, HEADS * HEAD_DIM), (b, KV_HEADS * HEAD_DIM), (c, KV_HEADS * HEAD_DIM)];
                Block {
                    norms: [(); 4].map(|()| norm(cube, HIDDEN, &mut random)),
                    heads: Heads {
                        layer,
                        kind,
                        heads: HEADS,
                        kv_heads: KV_HEADS,
                        head_dim: HEAD_DIM,
                        query_factor: 0.25,
                        window,
                        q_norm: norm(cube, HEAD_DIM, &mut random),
                        k_norm: norm(cube, HEAD_DIM, &mut random),
                        inv_freq: cube
                            .vector((0..HEAD_DIM / 2).map(|i| 0.5_f32.powi(i as i32)).collect())
                            .expect("sent"),
                    },
                    qkv: matrix(cube, &qkv, HIDDEN, &mut random),
                    output: matrix(cube, &[(a, HIDDEN)], HEADS * HEAD_DIM, &mut random),
                    gate_up: matrix(cube, &[(a, INTERMEDIATE), (b, INTERMEDIATE)], HIDDEN, &mut random),
                    down: matrix(cube, &[(a, HIDDEN)], INTERMEDIATE, &mut random),
                }
            });
        let blocks = blocks.collect();
        let norm = norm(cube, HIDDEN, &mut random);
        Self { embedding, blocks, norm, observes: false, added: None, seen: Vec::new(), keys: Vec::new() }
    }
}

fn matrix(cube: &Cube, parts: &[(TensorFormat, usize)], cols: usize, random: &mut Random) -> Matrix {
    let views = parts.iter().map(|(format, rows)| TensorView {
        file_name: "w",
        source: "random",
        shape: vec![*rows, cols],
        format: *format,
        bytes: file_bytes(*format, *rows, cols, random).into(),
        place: None,
    });
    cube.matrix(views.collect(), Quantization::None).expect("whole rows")
}

fn norm(cube: &Cube, width: usize, random: &mut Random) -> Norm<Vector> {
    let scale = random.floats(width).iter().map(|x| 1.0 + 0.2 * x).collect();
    Norm { scale: cube.vector(scale).expect("sent"), eps: 1e-6 }
}

impl Program<Cube> for Tiny {
    fn shape(&self) -> ModelShape<'_, Cube> {
        let blocks = self.blocks.iter().map(|block| {
            let Block { heads, qkv, output, gate_up, down, .. } = block;
            BlockShape { qkv, heads, output, gate_up, down }
        });
        ModelShape { embedding: &self.embedding, blocks: blocks.collect(), head: &self.embedding }
    }

    fn run(&mut self, cube: &Cube, x: &mut Stream<'_>) -> Result<(), MachineError> {
        cube.embed(x, &self.embedding, (HIDDEN as f32).sqrt())?;
        for (index, block) in self.blocks.iter().enumerate() {
            let Block { norms: [before, after, before_feed, after_feed], heads, qkv, output, gate_up, down } =
                block;
            let projected = cube.project(x, before, qkv)?;
            let attended = cube.attend(x, projected, heads)?;
            if self.observes {
                self.seen.push(cube.look_at(x, &attended)?);
            }
            cube.join(x, attended, output, after)?;
            let gated = cube.gate(x, before_feed, gate_up)?;
            if self.observes {
                self.seen.push(cube.look_at(x, &gated)?);
            }
            cube.join(x, gated, down, after_feed)?;
            if self.observes {
                self.seen.push(cube.look(x)?);
            }
            if let Some(added) = self.added.as_ref().filter(|_| index == 0) {
                cube.add(x, added)?;
            }
        }
        if self.observes {
            self.keys = cube.keys(x, 0, 1, 1..3)?;
        }
        cube.logits(x, &self.norm, &self.embedding)
    }

    fn is_observed(&self) -> bool {
        self.observes
    }
}

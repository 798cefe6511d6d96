//! [`ImageMachine`]: what a device must be able to do beyond [`Machine`] for the image encoder to run on it.

use std::fmt;

use burn::tensor::Device;

use super::machine::{Machine, Norm, Values};
use super::pending::Pending;
use super::vectors::Vectors;
use super::{MachineError, MatrixError};
use crate::checkpoint::TensorView;
use crate::config::VisionConfig;
use crate::formats::TensorFormat;

/// Whether the fast machine of a device can run an encoder of this shape; the definitions run any.
pub fn is_within_kernels(config: &VisionConfig, device: &Device) -> bool {
    #[cfg(feature = "cube")]
    if crate::device::is_gpu(device) {
        return super::Cube::encodes(config);
    }
    let _ = (config, device);
    true
}

/// What is the matter when rows and weights don't fit each other: both were checked when a model was loaded.
pub(crate) fn expect(holds: bool, what: &'static str) -> Result<(), MachineError> {
    if holds { Ok(()) } else { Err(MachineError::Bug { what }) }
}

/// [`expect`] of queries, keys and values: rows of whole images, all alike, of whole heads.
pub(crate) fn expect_heads(shapes: [[usize; 2]; 3], images: usize, heads: usize) -> Result<(), MachineError> {
    let [[rows, width], ..] = shapes;
    let alike = shapes.iter().all(|shape| *shape == [rows, width]);
    let whole =
        rows > 0 && images > 0 && rows.is_multiple_of(images) && heads > 0 && width.is_multiple_of(heads);
    expect(alike && whole, "queries, keys and values of an image that differ, or are no whole heads")
}

/// What SigLIP's encoder and Gemma's projector need of a device. R = rows: the patches of all images of a pass, one
/// image after the other.
pub trait ImageMachine: Machine {
    /// Rows of numbers, \[count, width\], in memory of their own.
    type Features: fmt::Debug + Clone + Send + Sync;

    /// A tensor of a checkpoint as a matrix for [`linear`](Self::linear), in the format in which the device multiplies
    /// many rows best.
    ///
    /// # Errors
    ///
    /// Bytes that are not what format and shape ask for.
    fn image_matrix(&self, view: TensorView<'_>) -> Result<Self::Matrix, MatrixError>;

    /// The most images that are encoded together: one of the published size fills a GPU.
    fn images_at_once(&self) -> usize {
        usize::MAX
    }

    /// What [`Numbers::Operands`] are kept in.
    fn operands(&self) -> TensorFormat {
        TensorFormat::F32
    }

    /// Copies rows of f32 to the device.
    ///
    /// # Errors
    ///
    /// Values that are not whole rows, and a device that fails.
    fn features(&self, values: Vec<f32>, width: usize) -> Result<Self::Features, MachineError>;

    /// Rows, and numbers in each.
    fn features_shape(&self, x: &Self::Features) -> [usize; 2];

    /// The patches of images, row by row: `pixels` \[images, channels, side, side\] in f32 →
    /// \[images * patches, channels * patch * patch\] as [`Numbers::Operands`].
    ///
    /// # Errors
    ///
    /// Shapes that don't fit, and a device that fails.
    fn patches(
        &self,
        pixels: Vec<f32>,
        images: usize,
        shape: PatchShape,
    ) -> Result<Self::Features, MachineError>;

    /// `(x - mean) * rsqrt(variance + eps) * scale + bias` of each row of f32.
    ///
    /// # Errors
    ///
    /// Shapes that don't fit, and a device that fails.
    fn layer_norm(
        &self,
        x: &Self::Features,
        norm: &LayerNorm<Self::Vector>,
        numbers: Numbers,
    ) -> Result<Self::Features, MachineError>;

    /// RMS normalization of each row of f32, as [`Numbers::Operands`].
    ///
    /// # Errors
    ///
    /// Shapes that don't fit, and a device that fails.
    fn rms_norm(&self, x: &Self::Features, norm: &Norm<Self::Vector>)
    -> Result<Self::Features, MachineError>;

    /// `x Wᵀ` and what [`Ending`] says; `x` as [`Numbers::Operands`].
    ///
    /// # Errors
    ///
    /// Shapes that don't fit, and a device that fails.
    fn linear(
        &self,
        x: &Self::Features,
        matrix: &Self::Matrix,
        ending: Option<Ending<'_, Self>>,
        numbers: Numbers,
    ) -> Result<Self::Features, MachineError>;

    /// Queries, keys and values: the products of one input with three matrices, each with its bias, in the numbers that
    /// [`full_attention`](Self::full_attention) takes for `heads` heads and the patches of an image.
    ///
    /// # Errors
    ///
    /// Shapes that don't fit, and a device that fails.
    fn queries_keys_values(
        &self,
        x: &Self::Features,
        linears: [(&Self::Matrix, &Self::Vector); 3],
        images: usize,
        heads: usize,
    ) -> Result<[Self::Features; 3], MachineError>;

    /// `softmax(factor * q kᵀ) v` of each head, of every row over all rows of its image: all three
    /// \[R, heads * head_dim\], the result as [`Numbers::Operands`]. No machine holds all scores at once: the definition at
    /// most 64 MiB of them, others one tile.
    ///
    /// # Errors
    ///
    /// Shapes that don't fit, heads for which there is no kernel, and a device that fails.
    fn full_attention(
        &self,
        qkv: [Self::Features; 3],
        images: usize,
        heads: usize,
        factor: f32,
    ) -> Result<Self::Features, MachineError>;

    /// The mean of each square of `size` by `size` rows of f32, which lie in squares of `side` by `side` rows, one for
    /// each image: \[images * side * side, width\] → \[images * (side / size)², width\].
    ///
    /// # Errors
    ///
    /// Shapes that don't fit, and a device that fails.
    fn mean_of_squares(
        &self,
        x: &Self::Features,
        images: usize,
        side: usize,
        size: usize,
    ) -> Result<Self::Features, MachineError>;

    /// Rows on their way to the host, in f32 whatever they are stored in.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn look_at_features(&self, x: &Self::Features) -> Result<Values, MachineError>;

    /// Rows of f32 as vectors that stand for tokens; they stay where they are.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn vectors(&self, x: Self::Features) -> Result<Vectors, MachineError>;

    /// A promise that is kept when the device has come here; where everything is computed at once, it is kept already.
    fn mark(&self) -> Pending<()> {
        Pending::ready(Ok(()))
    }
}

/// How rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// In f32.
    Floats,
    /// As the device's products read them: bf16 or f16 for tensor cores in fast mode, f32 elsewhere.
    Operands,
}

/// What happens to the sums of a product, in this order.
#[derive(Debug)]
pub struct Ending<'a, M: ImageMachine> {
    /// Added to every row, \[outputs\].
    pub bias: &'a M::Vector,
    /// Whether the activation `gelu_tanh` follows.
    pub gelu: bool,
    /// Rows of f32 that are added at last, \[R, outputs\], or fewer, which then repeat.
    pub added: Option<&'a M::Features>,
}

/// How square images of several channels are divided into square patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatchShape {
    /// Planes of an image.
    pub channels: usize,
    /// Pixels along a side of an image.
    pub side: usize,
    /// Pixels along a side of a patch.
    pub patch: usize,
}

impl PatchShape {
    /// Patches along a side of an image.
    pub const fn per_side(&self) -> usize {
        match self.patch {
            0 => 0,
            patch => self.side / patch,
        }
    }

    /// Patches of an image.
    pub const fn patches(&self) -> usize {
        self.per_side() * self.per_side()
    }

    /// Numbers of a patch.
    pub const fn width(&self) -> usize {
        self.channels * self.patch * self.patch
    }

    /// Numbers of an image.
    pub const fn pixels(&self) -> usize {
        self.channels * self.side * self.side
    }

    /// Whether so many images of it have so many numbers, and are made of whole patches.
    pub(crate) const fn fits(&self, pixels: usize, images: usize) -> bool {
        let whole = self.per_side() * self.patch == self.side;
        whole && images > 0 && self.pixels() > 0 && images.saturating_mul(self.pixels()) == pixels
    }
}

/// A layer normalization.
#[derive(Debug, Clone)]
pub struct LayerNorm<V> {
    /// Multiplied with, \[width\].
    pub scale: V,
    /// Added, \[width\].
    pub bias: V,
    /// Added to the variance.
    pub eps: f32,
}

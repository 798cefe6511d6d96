//! The definitions: every operation in burn's tensors, as it stands in the paper. They run on every device that burn
//! has, and are differentiable. They are the documentation of the operations, what devices without a machine of
//! their own run, and what the others are tested against.
//!
//! | file | operations |
//! |---|---|
//! | `linear` | the product with a weight |
//! | `norm` | RMS normalization; layer normalization of the image encoder |
//! | `rope` | rotary position embedding |
//! | `attention` | attention over a cache; full attention of the image encoder |
//! | `cache` | writing to a cache, and reading from it |
//! | `gelu` | gated activation; bias and activation of the image encoder |
//! | `patches` | an image into its patches; squares of vectors into their means |
//! | `machine` | [`Plain`]: the [`Machine`](super::machine::Machine) that they make up |
//! | `stream` | what it keeps: caches, and the rows of a pass |

pub mod attention;
pub mod cache;
pub mod gelu;
mod image;
pub mod linear;
mod machine;
pub mod norm;
pub mod patches;
pub mod rope;
mod stream;

pub use machine::Plain;
pub use stream::{PlainCache, PlainRows, PlainStream, PlainVector};

/// What the tests of the definitions share.
#[cfg(all(test, feature = "flex"))]
mod testing {
    use burn::tensor::{Device, Tensor, TensorData};

    /// A tensor of given numbers.
    pub(super) fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
    }

    /// Compares with numbers that were computed with six digits or more, all of them below 10 in size.
    #[track_caller]
    pub(super) fn assert_close<const D: usize>(found: Tensor<D>, shape: [usize; D], expected: &[f32]) {
        assert_eq!(found.dims(), shape);
        let found = found.into_data().try_into_vec::<f32>().expect("f32");
        for (n, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((found - expected).abs() < 5e-6, "element {n}: {found}, expected {expected}");
        }
        assert_eq!(found.len(), expected.len());
    }
}

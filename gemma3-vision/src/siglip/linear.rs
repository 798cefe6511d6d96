//! A product with a bias: `x Wᵀ + b`.

use burn::tensor::Tensor;
use gemma3_core::device::DeviceFailed;
use gemma3_core::matrix::Matrix;

/// Weight \[out, in\] and bias \[out\].
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub(crate) weight: Matrix,
    pub(crate) bias: Tensor<1>,
}

impl Linear {
    /// \[rows, in\] → \[rows, out\].
    pub(crate) fn forward(&self, x: Tensor<2>) -> Result<Tensor<2>, DeviceFailed> {
        Ok(self.weight.forward(x)? + self.bias.clone().unsqueeze::<2>())
    }

    /// [`Linear::forward`] of several with the same input.
    pub(crate) fn forward_each<const N: usize>(
        linears: [&Self; N],
        x: Tensor<2>,
    ) -> Result<[Tensor<2>; N], DeviceFailed> {
        let products = Matrix::forward_each(linears.map(|linear| &linear.weight), x)?;
        let mut linears = linears.into_iter().zip(products);
        Ok(std::array::from_fn(|_| {
            let (linear, product) = linears.next().expect("one for each");
            product + linear.bias.clone().unsqueeze::<2>()
        }))
    }

    /// The product without the bias, for a caller that adds it in a fused operation.
    pub(crate) fn product(&self, x: Tensor<2>) -> Result<Tensor<2>, DeviceFailed> {
        self.weight.forward(x)
    }
}

//! Products of few rows of input with a packed matrix.

mod fast;
mod integers;
#[cfg(test)]
mod plain;
mod product;
mod staging;
#[cfg(test)]
mod tests;
mod tiling;

pub(crate) use fast::gelu_tanh;
pub use tiling::{Hardware, Tiling};

#[cfg(test)]
use tiling::Activations;
#[cfg(test)]
pub(crate) use tiling::{PLANES, WITHOUT_PLANES};

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::ops::cube::packed::PackedMatrix;
use fast::{Epilogue, normed_input_kernel, plain_input_kernel, residual_input_kernel};
#[cfg(test)]
use plain::plain_kernel;
use product::Product;

/// The most rows of input of one launch.
pub const MAX_BATCH: usize = 8;

/// The input of a product: f32 \[batch, cols\], and what is done to it first.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// `x`.
    Plain {
        /// \[batch, cols\].
        x: &'a Handle,
    },
    /// `rms_norm(x) * scale`.
    Normed {
        /// \[batch, cols\].
        x: &'a Handle,
        /// \[cols\].
        scale: &'a Handle,
        /// Added to the mean of the squares.
        eps: f32,
    },
    /// `rms_norm(h) * scale` of `h = x + rms_norm(branch) * branch_scale`: the end of one half of a
    /// decoder layer and the beginning of the next.
    Residual {
        /// The residual stream, \[batch, cols\].
        x: &'a Handle,
        /// What is added to it, \[batch, cols\].
        branch: &'a Handle,
        /// \[cols\].
        branch_scale: &'a Handle,
        /// \[cols\].
        scale: &'a Handle,
        /// Receives `h`, \[batch, cols\]. Not the buffer of `x`.
        stream: &'a Handle,
        /// Added to the mean of the squares, in both norms.
        eps: f32,
    },
}

/// `input Wᵀ` into `out` \[batch, rows\].
///
/// # Panics
/// See [`Tiling`]: an input other than [`Input::Plain`] needs a staged tiling.
pub fn matvec(
    client: &Client,
    input: Input<'_>,
    matrix: &PackedMatrix,
    out: &Handle,
    batch: usize,
    tiling: Tiling,
) {
    launch(client, input, matrix, out, batch, tiling, Epilogue::Store);
}

/// `gelu_tanh(input Gᵀ) * (input Uᵀ)` into `out` \[batch, rows / 2\], of a matrix whose first half of rows is
/// `G` and whose second half is `U`.
pub fn gated(
    client: &Client,
    input: Input<'_>,
    matrix: &PackedMatrix,
    out: &Handle,
    batch: usize,
    tiling: Tiling,
) {
    launch(client, input, matrix, out, batch, tiling, Epilogue::Gated);
}

/// `x Wᵀ` by the plain kernel.
#[cfg(test)]
pub(crate) fn matvec_plain(client: &Client, x: &Handle, matrix: &PackedMatrix, out: &Handle, batch: usize) {
    let layout = matrix.layout;
    let dim = CubeDim::new_1d(64);
    let count = CubeCount::Static(layout.rows.div_ceil(64) as u32, batch as u32, 1);
    // SAFETY: the lengths are those of the layout and of the batch, which bound every index of the kernel.
    unsafe {
        plain_kernel::launch_unchecked(
            client,
            count,
            dim,
            BufferArg::from_raw_parts(x.clone(), batch * layout.cols / 4),
            BufferArg::from_raw_parts(matrix.quants.clone(), layout.rows * layout.row_words() / 4),
            BufferArg::from_raw_parts(matrix.side.clone(), layout.side_len()),
            BufferArg::from_raw_parts(out.clone(), batch * layout.rows),
            layout,
        );
    }
}

fn launch(
    client: &Client,
    input: Input<'_>,
    matrix: &PackedMatrix,
    out: &Handle,
    batch: usize,
    tiling: Tiling,
    epilogue: Epilogue,
) {
    let layout = matrix.layout;
    let product = Product { layout, batch, tiling };
    let outputs = layout.rows / epilogue.rows_per_output();
    let words = tiling.vector_words;
    let count = CubeCount::Static(tiling.cubes(&layout) as u32, 1, 1);
    let dim = tiling.groups.dim();
    // SAFETY: these lengths are those of the layout and the batch, which bound every index of the kernels.
    let floats = |handle: &Handle, len| unsafe { BufferArg::from_raw_parts(handle.clone(), len) };
    let rows = |handle: &Handle| floats(handle, batch * layout.cols / 4);
    let row = |handle: &Handle| floats(handle, layout.cols / 4);
    let quants = floats(&matrix.quants, layout.rows * layout.row_words() / words);
    let side = floats(&matrix.side, layout.side_len());
    let out = floats(out, batch * outputs);
    match input {
        // SAFETY: as above.
        Input::Plain { x } => unsafe {
            plain_input_kernel::launch_unchecked(
                client,
                count,
                dim,
                words,
                rows(x),
                quants,
                side,
                out,
                product,
                epilogue,
            );
        },
        // SAFETY: as above.
        Input::Normed { x, scale, eps } => unsafe {
            normed_input_kernel::launch_unchecked(
                client,
                count,
                dim,
                words,
                rows(x),
                row(scale),
                quants,
                side,
                out,
                eps,
                product,
                epilogue,
            );
        },
        // SAFETY: as above.
        Input::Residual { x, branch, branch_scale, scale, stream, eps } => unsafe {
            residual_input_kernel::launch_unchecked(
                client,
                count,
                dim,
                words,
                rows(x),
                rows(branch),
                row(branch_scale),
                row(scale),
                quants,
                side,
                rows(stream),
                out,
                eps,
                product,
                epilogue,
            );
        },
    }
}

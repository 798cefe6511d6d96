//! Weights that a later launch reads, asked for while this one leaves the memory idle.
//!
//! Attention of one token waits for the latency of few loads, not for their amount. So its launch has cubes more at the
//! end of its first axis, which run where there is room and ask the second-level cache for the beginning of a matrix to
//! come. They change nothing but the time that a later launch takes. There is an instruction for that on compute
//! capability 9.0; on other devices there are no such cubes.

use cubecl::prelude::*;

use super::matvec::Machine;
use super::packed::PackedMatrix;

/// 16 bytes.
pub(crate) type Chunk = Vector<u32, Const<4>>;

/// Bytes that a unit asks for at once.
const PIECE: usize = 4096;
const PIECE_CHUNKS: usize = PIECE / 16;

/// A matrix that will be read soon.
#[derive(Debug, Clone, Copy)]
pub struct Ahead<'a> {
    /// The matrix.
    pub matrix: &'a PackedMatrix,
    /// How much of its packed weights to ask for, from the first on.
    pub bytes: usize,
}

/// What the cubes at the end do, a constant of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct AheadJob {
    /// The first of them along the first axis.
    first_cube: usize,
    /// How many there are; 0: none.
    cubes: usize,
    /// Positions along the other axes, all of which have these cubes.
    others: usize,
    pieces: usize,
}

impl AheadJob {
    /// The job beside a launch of `cubes` cubes along the first axis and `others` along the rest together, and the
    /// buffer that it takes. Nothing where the device lacks the instruction.
    pub fn new(
        machine: &Machine,
        ahead: Option<Ahead<'_>>,
        cubes: usize,
        others: usize,
    ) -> (Self, ComptimeOptionArgs<Box<[Chunk]>>) {
        let none = Self { first_cube: cubes, cubes: 0, others, pieces: 0 };
        let Some(Ahead { matrix, bytes }) = ahead.filter(|_| machine.bulk_prefetch) else {
            return (none, ComptimeOptionArgs::None);
        };
        let words = matrix.layout.rows * matrix.layout.row_words();
        let pieces = bytes.min(words * size_of::<u32>()) / PIECE;
        if pieces == 0 {
            return (none, ComptimeOptionArgs::None);
        }
        let more = pieces.min(machine.multiprocessors()).div_ceil(others);
        // SAFETY: the length is that of the layout.
        let buffer = unsafe { BufferArg::from_raw_parts(matrix.quants.clone(), words / 4) };
        (Self { cubes: more, pieces, ..none }, ComptimeOptionArgs::Some(buffer))
    }

    /// Cubes along the first axis, those of the launch itself among them.
    pub const fn all_cubes(&self) -> usize {
        self.first_cube + self.cubes
    }

    /// Pieces of a cube.
    const fn each(&self) -> usize {
        self.pieces.div_ceil(self.cubes * self.others)
    }
}

/// At the beginning of a kernel: what the cubes at the end do, and their end.
#[cube]
pub(crate) fn look_ahead(ahead: &ComptimeOption<Box<[Chunk]>>, #[comptime] job: AheadJob) {
    #[comptime]
    match ahead {
        ComptimeOption::Some(weights) => {
            if CUBE_POS_X >= comptime!(job.first_cube as u32) {
                let other = CUBE_POS_Y + CUBE_COUNT_Y * CUBE_POS_Z;
                let cube =
                    CUBE_POS_X - comptime!(job.first_cube as u32) + other * comptime!(job.cubes as u32);
                let mut at = UNIT_POS;
                while at < comptime!(job.each() as u32) {
                    let piece = cube * comptime!(job.each() as u32) + at;
                    if piece < comptime!(job.pieces as u32) {
                        ask_for(weights, piece as usize * PIECE_CHUNKS);
                    }
                    at += CUBE_DIM;
                }
                terminate!();
            }
        }
        ComptimeOption::None => {}
    }
}

/// Asks the second-level cache for a piece.
#[cube]
fn ask_for(weights: &[Chunk], first: usize) {
    // SAFETY: pieces end before the matrix does.
    let pointer = unsafe { weights[first..first + 1].as_ptr_unchecked() };
    gpu_asm!(
        "cp.async.bulk.prefetch.L2.global [{from}], {bytes};",
        from = in(_) pointer, bytes = const PIECE,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::TensorFormat;
    use crate::ops::cube::testing::*;

    #[test]
    fn cubes_share_what_there_is() {
        let Some(client) = client() else { return };
        let machine = Machine { bulk_prefetch: true, ..Machine::of(&client) };
        // 128 KiB and a bit.
        let (matrix, _) = random_matrix(&client, TensorFormat::BF16, 257, 256, &mut Random::new(70));
        for (bytes, others, pieces) in [(1 << 20, 1, 32), (1 << 20, 7, 32), (3 * PIECE, 2, 3), (100, 1, 0)] {
            let (job, _) = AheadJob::new(&machine, Some(Ahead { matrix: &matrix, bytes }), 5, others);
            assert_eq!(job.pieces, pieces);
            assert_eq!(job.cubes == 0, pieces == 0);
            if pieces > 0 {
                let cubes = job.cubes * others;
                assert!(
                    job.each() * cubes >= pieces && job.each() * (cubes - 1) <= pieces + cubes,
                    "{job:?}"
                );
            }
        }
        let none = Machine { bulk_prefetch: false, ..machine };
        let ahead = Ahead { matrix: &matrix, bytes: 1 << 20 };
        assert_eq!(AheadJob::new(&none, Some(ahead), 5, 1).0.all_cubes(), 5);
    }
}

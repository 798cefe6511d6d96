//! Tensor cores and what feeds them, as PTX: only for devices of CUDA.
//!
//! Fragments are those of `mma.m16n8k16`. Unit `l` of a plane holds of a 16 x 8 accumulator the columns
//! `2 (l % 4)` and the next, of row `l / 4` and of row `l / 4 + 8`.

use cubecl::prelude::*;

use crate::ops::cube::packed::Quad;

/// 16 bytes: 8 halves.
pub(super) type Words = Vector<u32, Const<4>>;

/// The address in shared memory as PTX takes it.
#[cube]
pub(super) fn shared_address(memory: &mut [Words]) -> u32 {
    let start = memory.as_ptr();
    let address: u32;
    gpu_asm!(
        "{{ .reg .u64 shared; cvta.to.shared.u64 shared, {start}; cvt.u32.u64 {address}, shared; }}",
        start = in(_) start, address = out(_) address,
    );
    address
}

/// Starts the copy of 16 bytes to shared memory; with `bytes` 0 they become zeros.
#[cube]
pub(super) fn copy_words(from: &[Words], at: usize, to: u32, bytes: u32) {
    let from = from[at..at + 1].as_ptr();
    gpu_asm!(
        "cp.async.cg.shared.global [{to}], [{from}], 16, {bytes};",
        to = in(_) to, from = in(_) from, bytes = in(_) bytes,
    );
}

/// Waits for all copies that the unit has started. Those of others are there after the next barrier.
#[cube]
pub(super) fn wait_for_copies() {
    gpu_asm!("cp.async.wait_all;");
}

/// A barrier of `units` of the cube's units, those of one of two groups. Which barrier is a constant of the
/// branch: a register would take all that the multiprocessor has.
#[cube]
pub(super) fn sync_group(group: u32, #[comptime] units: usize) {
    if group == 0 {
        gpu_asm!("bar.sync 1, {units};", units = const units);
    } else {
        gpu_asm!("bar.sync 2, {units};", units = const units);
    }
}

#[cube]
pub(super) fn store_shared(to: u32, words: Words) {
    // Read here: a mutable variable would reach the assembler as its address.
    let words = Words::reinterpret(words);
    gpu_asm!("st.shared.v4.b32 [{to}], {words};", to = in(_) to, words = in(_) words);
}

#[cube]
pub(super) fn load_shared(from: u32) -> Words {
    let words: Words;
    gpu_asm!("ld.shared.v4.b32 {words}, [{from}];", words = out(_) words, from = in(_) from);
    words
}

/// Four 8 x 8 matrices of halves; unit `l` gives the address of row `l % 8` of matrix `l / 8`.
#[cube]
pub(super) fn load_matrices(row: u32) -> Words {
    let words: Words;
    gpu_asm!(
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {words}, [{row}];",
        words = out(_) words, row = in(_) row, options(nomem),
    );
    words
}

/// Four 8 x 8 matrices of halves, transposed.
#[cube]
pub(super) fn load_transposed(row: u32) -> Words {
    let words: Words;
    gpu_asm!(
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {words}, [{row}];",
        words = out(_) words, row = in(_) row, options(nomem),
    );
    words
}

/// `a b + c` of 16 x 16 and 16 x 8 halves (`half`: bf16 or f16).
#[cube]
pub(super) fn multiply_16(a: Words, b0: u32, b1: u32, c: Quad, #[comptime] half: &'static str) -> Quad {
    let d: Quad;
    gpu_asm!(
        "mma.sync.aligned.m16n8k16.row.col.f32.{half}.{half}.f32 {d}, {a}, {{{b0}, {b1}}}, {c};",
        d = out(_) d, a = in(_) a, b0 = in(_) b0, b1 = in(_) b1, c = in(_) c, options(pure, nomem),
    );
    d
}

/// `a b + c` of 16 x 8 and 8 x 8 halves.
#[cube]
pub(super) fn multiply_8(a0: u32, a1: u32, b: u32, c: Quad, #[comptime] half: &'static str) -> Quad {
    let d: Quad;
    gpu_asm!(
        "mma.sync.aligned.m16n8k8.row.col.f32.{half}.{half}.f32 {d}, {{{a0}, {a1}}}, {{{b}}}, {c};",
        d = out(_) d, a0 = in(_) a0, a1 = in(_) a1, b = in(_) b, c = in(_) c, options(pure, nomem),
    );
    d
}

/// Two numbers as halves, rounded to nearest even, the first in the lower bits.
#[cube]
pub(super) fn halves(low: f32, high: f32, #[comptime] half: &'static str) -> u32 {
    let word: u32;
    gpu_asm!(
        "cvt.rn.{half}x2.f32 {word}, {high}, {low};",
        word = out(_) word, high = in(_) high, low = in(_) low, options(pure, nomem),
    );
    word
}

/// `2^x`, within 2^-22 of itself.
#[cube]
pub(super) fn power_of_two(x: f32) -> f32 {
    let power: f32;
    gpu_asm!("ex2.approx.ftz.f32 {power}, {x};", power = out(_) power, x = in(_) x, options(pure, nomem));
    power
}

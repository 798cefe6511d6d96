//! The instructions of NVIDIA's tensor cores that the kernels use, and the copies that feed them.
//!
//! They are expanded for CUDA only; [`Processor`](super::Processor) says where.
//!
//! Shared memory is addressed by its 32-bit address. Rows of a tile are 64 bf16, 128 bytes, and the eight
//! chunks of 16 bytes in a row change places with the row's number ([`swizzled`]): so `ldmatrix` meets no bank
//! conflicts, and it is the order that `wgmma` calls a 128-byte swizzle.

use cubecl::prelude::*;

/// Four words: 16 bytes, eight bf16.
pub(super) type Chunk = Vector<u32, Const<4>>;

/// The address of a slice in shared memory.
#[cube]
pub(super) fn shared_address(slice: &[Chunk]) -> u32 {
    // SAFETY: only the address is taken.
    let pointer = unsafe { slice.as_ptr_unchecked() };
    let address: u32;
    gpu_asm!(
        "{{ .reg .u64 wide; cvta.to.shared.u64 wide, {pointer}; cvt.u32.u64 {address}, wide; }}",
        address = out(_) address, pointer = in(_) pointer, options(nomem),
    );
    address
}

/// The byte at which chunk `chunk` of row `row` of a tile lies.
#[cube]
pub(super) fn swizzled(row: u32, chunk: u32) -> u32 {
    (row << 7u32) + ((chunk ^ (row & 7u32)) << 4u32)
}

/// Begins to copy 16 bytes into shared memory, or as many zeros.
#[cube]
pub(super) fn copy_chunk(from: &[Chunk], index: usize, to: u32, bytes: u32) {
    // SAFETY: the caller gives an index within the buffer.
    let pointer = unsafe { from[index..index + 1].as_ptr_unchecked() };
    gpu_asm!(
        "cp.async.cg.shared.global [{to}], [{from}], 16, {bytes};",
        to = in(_) to, from = in(_) pointer, bytes = in(_) bytes,
    );
}

/// Ends a group of copies.
#[cube]
pub(super) fn commit_copies() {
    gpu_asm!("cp.async.commit_group;");
}

/// Waits until all but the last `pending` groups of copies of this unit have arrived.
#[cube]
pub(super) fn wait_copies(#[comptime] pending: usize) {
    gpu_asm!("cp.async.wait_group {pending};");
}

/// Makes this unit's writes to shared memory visible to the asynchronous matrix instructions.
#[cube]
pub(super) fn fence_async() {
    gpu_asm!("fence.proxy.async.shared::cta;");
}

/// Writes 16 bytes.
#[cube]
pub(super) fn store_chunk(to: u32, a: u32, b: u32, c: u32, d: u32) {
    gpu_asm!(
        "st.shared.v4.b32 [{to}], {{{a}, {b}, {c}, {d}}};",
        to = in(_) to, a = in(_) a, b = in(_) b, c = in(_) c, d = in(_) d,
    );
}

/// Writes 8 bytes.
#[cube]
pub(super) fn store_half_chunk(to: u32, a: u32, b: u32) {
    gpu_asm!("st.shared.v2.b32 [{to}], {{{a}, {b}}};", to = in(_) to, a = in(_) a, b = in(_) b);
}

/// Two floats as bf16, rounded to even, the first in the low half.
#[cube]
pub(crate) fn bf16_pair(low: f32, high: f32) -> u32 {
    let pair: u32;
    gpu_asm!(
        "cvt.rn.bf16x2.f32 {pair}, {high}, {low};",
        pair = out(_) pair, high = in(_) high, low = in(_) low, options(nomem),
    );
    pair
}

/// [`gelu_tanh`](crate::ops::cube::matvec::gelu_tanh) by the approximate instructions for a power of 2 and a reciprocal,
/// each off by some 2^-22 of its result: far below what outputs are rounded by, and a fraction of the instructions.
#[cube]
pub(super) fn quick_gelu_tanh(x: f32) -> f32 {
    // x / (1 + exp(-2u)), with the logarithm of 2 in the factor.
    let exponent = x * fma(0.044_715f32 * x, x, 1.0f32) * -2.302_208_2f32;
    let share: f32;
    gpu_asm!(
        "{{ .reg .f32 power; ex2.approx.ftz.f32 power, {exponent}; add.f32 power, power, 0f3F800000; rcp.approx.ftz.f32 {share}, power; }}",
        share = out(_) share, exponent = in(_) exponent, options(nomem),
    );
    x * share
}

/// Four 8x8 matrices of bf16, whose rows begin at the addresses that the units of a plane give.
#[cube]
pub(super) fn load_matrices(address: u32) -> Chunk {
    let matrices: Chunk;
    gpu_asm!(
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {matrices}, [{address}];",
        matrices = out(_) matrices, address = in(_) address,
    );
    matrices
}

/// `c + a b`, of 16x16 and 16x8 matrices.
#[cube]
pub(super) fn multiply_add(
    a: Chunk,
    b_low: u32,
    b_high: u32,
    c: Vector<f32, Const<4>>,
) -> Vector<f32, Const<4>> {
    let d: Vector<f32, Const<4>>;
    gpu_asm!(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {d}, {a}, {{{b_low}, {b_high}}}, {c};",
        d = out(_) d, a = in(_) a, b_low = in(_) b_low, b_high = in(_) b_high, c = in(_) c, options(nomem),
    );
    d
}

/// `c + a b` of a warpgroup's 64x64 and 64x`n` tiles in shared memory. Each unit has `n / 2` numbers of the
/// result, the first of its vector; vectors have a power of two of them. Waits for the result.
#[cube]
pub(super) fn warpgroup_multiply_add<S: Size>(
    a: u32,
    b: u32,
    c: Vector<f32, S>,
    #[comptime] n: usize,
) -> Vector<f32, S> {
    let registers = S::value();
    let body = comptime!(warpgroup_instructions(n, registers, &[]));
    let d: Vector<f32, S>;
    // The operands are numbered in this order in `body`, which names each register of `d` and `c`.
    gpu_asm!(
        "// {d} {c} {a} {b}",
        "{body}",
        d = out(_) d, c = in(_) c, a = in(_) a, b = in(_) b,
    );
    d
}

/// The copies of a unit that run while its warpgroup multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Copies {
    /// Copies of the input.
    pub input: usize,
    /// Copies of weights.
    pub weights: usize,
    /// Whether only some units make the last of the weights' copies.
    pub partial: bool,
    /// Bytes from the destination of a copy to that of the next.
    pub stride: usize,
}

/// The most copies of a unit.
pub(super) const MAX_COPIES: usize = 16;

/// [`warpgroup_multiply_add`] that begins copies of 16 bytes before it waits, and ends their group: of those at
/// `offsets` plus `depth` bytes in `input`, then in `weights`, to `input_to` and `weights_to` and on. Bit 0 of
/// `flags`: whether to copy at all; bit 1: whether to make the last copy, if it is partial.
#[cube]
pub(super) fn warpgroup_multiply_add_copying<S: Size>(
    a: u32,
    b: u32,
    c: Vector<f32, S>,
    input: &[Chunk],
    weights: &[Chunk],
    offsets: Vector<u32, Const<16>>,
    input_to: u32,
    weights_to: u32,
    depth: u32,
    flags: u32,
    #[comptime] n: usize,
    #[comptime] copies: Copies,
) -> Vector<f32, S> {
    let registers = S::value();
    let body = comptime!(warpgroup_instructions(n, registers, &copy_instructions(2 * registers + 2, copies)));
    // SAFETY: the caller gives offsets within the buffers.
    let input = unsafe { input.as_ptr_unchecked() };
    // SAFETY: as above.
    let weights = unsafe { weights.as_ptr_unchecked() };
    let d: Vector<f32, S>;
    // The operands are numbered in this order in `body`.
    gpu_asm!(
        "// {d} {c} {a} {b} {input} {weights} {offsets} {input_to} {weights_to} {depth} {flags}",
        "{body}",
        d = out(_) d, c = in(_) c, a = in(_) a, b = in(_) b, input = in(_) input, weights = in(_) weights,
        offsets = in(_) offsets, input_to = in(_) input_to, weights_to = in(_) weights_to, depth = in(_) depth,
        flags = in(_) flags,
    );
    d
}

/// The text of [`warpgroup_multiply_add`], for vectors of `registers` numbers: four instructions of 16 columns,
/// and what runs beside them.
fn warpgroup_instructions(n: usize, registers: usize, beside: &[String]) -> String {
    let sums = n / 2;
    let mut text = vec![
        "{".into(),
        format!(".reg .f32 sum<{sums}>;"),
        ".reg .pred keep;".into(),
        ".reg .b32 at;".into(),
        ".reg .b64 a, b;".into(),
    ];
    // The registers of a result and of an operand may be the same, so all operands are read first.
    text.extend((0..sums).map(|i| format!("mov.f32 sum{i}, %{};", registers + i)));
    text.push("mov.u32 at, 0;".into());
    text.push("setp.eq.u32 keep, at, 0;".into());
    text.push("wgmma.fence.sync.aligned;".into());
    let list = (0..sums).map(|i| format!("sum{i}")).collect::<Vec<_>>().join(", ");
    for step in 0..4 {
        // A descriptor is an address in units of 16 bytes, a leading offset of no meaning here, the 1,024
        // bytes from eight rows to the next eight, and the swizzle of 128 bytes.
        for (name, operand) in [("a", 2 * registers), ("b", 2 * registers + 1)] {
            text.push(format!("bfe.u32 at, %{operand}, 4, 14;"));
            text.push(format!("add.u32 at, at, {};", 0x1_0000 + 2 * step));
            text.push(format!("mov.b64 {name}, {{at, 0x40000040}};"));
        }
        text.push(format!(
            "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{list}}}, a, b, keep, 1, 1, 0, 0;"
        ));
    }
    text.push("wgmma.commit_group.sync.aligned;".into());
    text.extend_from_slice(beside);
    text.push("wgmma.wait_group.sync.aligned 0;".into());
    text.extend((0..sums).map(|i| format!("mov.f32 %{i}, sum{i};")));
    text.push("}".into());
    text.join("\n")
}

/// The copies of [`warpgroup_multiply_add_copying`], whose operands begin at `first`.
fn copy_instructions(first: usize, copies: Copies) -> Vec<String> {
    let offsets = first + 2;
    let after = offsets + MAX_COPIES;
    let mut text: Vec<String> = vec![
        ".reg .pred more, last;".into(),
        ".reg .b64 from, wide, far;".into(),
        format!("and.b32 at, %{}, 1;", after + 3),
        "setp.ne.u32 more, at, 0;".into(),
        format!("and.b32 at, %{}, 2;", after + 3),
        "setp.ne.u32 last, at, 0;".into(),
        format!("cvt.u64.u32 far, %{};", after + 2),
    ];
    let mut copy = 0;
    for (operand, to, count) in [(first, after, copies.input), (first + 1, after + 1, copies.weights)] {
        text.push(format!("add.u64 from, %{operand}, far;"));
        for i in 0..count {
            let partial = copies.partial && copy + 1 == copies.input + copies.weights;
            let when = if partial { "last" } else { "more" };
            text.push(format!("cvt.u64.u32 wide, %{};", offsets + copy));
            text.push("add.u64 wide, from, wide;".into());
            text.push(format!(
                "@{when} cp.async.cg.shared.global [%{to}+{}], [wide], 16;",
                i * copies.stride
            ));
            copy += 1;
        }
    }
    text.push("cp.async.commit_group;".into());
    text
}

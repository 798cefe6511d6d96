//! Sums and largest values over the units of a cube or of parts of it, with plane operations and without.

use cubecl::prelude::*;

/// How the units of a cube are divided: groups, each of which works on results of its own. A group is some
/// planes, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Groups {
    /// Units of a plane; a power of two. Without plane operations any row of units serves as one.
    pub plane_units: usize,
    /// Units of a plane that belong to one group; a power of two. Fewer than the plane's only where a group
    /// has one plane.
    pub lanes: usize,
    /// Planes of a group; a power of two.
    pub planes: usize,
    /// Groups of a cube. Cubes are whole planes.
    pub groups: usize,
    /// Whether the device has plane operations, on planes of exactly `plane_units` units.
    pub plane_operations: bool,
}

impl Groups {
    /// Units of a group.
    pub const fn units(&self) -> usize {
        self.lanes * self.planes
    }

    /// Units of a cube.
    pub const fn cube_units(&self) -> usize {
        self.units() * self.groups
    }

    /// The whole cube as one group.
    pub(crate) const fn cube(&self) -> Self {
        Self { lanes: self.plane_units, planes: self.cube_units() / self.plane_units, groups: 1, ..*self }
    }

    /// The dimensions of a cube.
    pub fn dim(&self) -> CubeDim {
        CubeDim::new_2d(self.plane_units as u32, (self.cube_units() / self.plane_units) as u32)
    }
}

/// The unit's index in its group.
#[cube]
pub(crate) fn unit_of_group(#[comptime] groups: Groups) -> usize {
    UNIT_POS as usize % groups.units()
}

/// The group's index in its cube.
#[cube]
pub(crate) fn group_of_cube(#[comptime] groups: Groups) -> usize {
    UNIT_POS as usize / groups.units()
}

/// What becomes of two values on the way to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reduction {
    Sum,
    Max,
}

#[cube]
fn reduced(a: f32, b: f32, #[comptime] reduction: Reduction) -> f32 {
    if comptime!(matches!(reduction, Reduction::Sum)) { a + b } else { f32::max(a, b) }
}

/// Replaces each of the first `count` values by its sum over the group's units, in all of them. Every unit of
/// the cube has to come here, since it waits for the others.
#[cube]
pub(crate) fn group_sum(values: &mut Array<f32>, #[comptime] count: usize, #[comptime] groups: Groups) {
    group_reduce(values, count, Reduction::Sum, groups);
}

/// The same with the largest of the units' values in the place of their sum.
#[cube]
pub(crate) fn group_max(values: &mut Array<f32>, #[comptime] count: usize, #[comptime] groups: Groups) {
    group_reduce(values, count, Reduction::Max, groups);
}

#[cube]
fn group_reduce(
    values: &mut Array<f32>,
    #[comptime] count: usize,
    #[comptime] reduction: Reduction,
    #[comptime] groups: Groups,
) {
    if comptime!(groups.plane_operations) {
        // All values take each step together, so that none waits for another's.
        #[unroll]
        for step in 0..comptime!(groups.lanes.ilog2() as usize) {
            #[unroll]
            for v in 0..count {
                let other =
                    plane_shuffle_xor(values[v], comptime!((groups.lanes >> (step + 1)) as u32).runtime());
                values[v] = reduced(values[v], other, reduction);
            }
        }
        if comptime!(groups.planes > 1) {
            reduce_over_planes(values, count, reduction, groups);
        }
    } else {
        reduce_by_halves(values, count, reduction, groups);
    }
}

/// The sums of `count` values over the units of a plane, a sum in `lanes / count` units side by side each, in the
/// order of the values; `count` is a power of two and at most `lanes`. Half the values leave a unit in each
/// step. Needs plane operations; overwrites the values.
#[cube]
pub(crate) fn spread_sum(values: &mut Array<f32>, #[comptime] count: usize, #[comptime] lanes: usize) -> f32 {
    let lane = UNIT_POS as usize % lanes;
    let steps = comptime!(count.ilog2() as usize);
    #[unroll]
    for step in 0..steps {
        let mask = comptime!(lanes >> (step + 1));
        let half = comptime!(count >> (step + 1));
        let upper = (lane & mask) != 0;
        #[unroll]
        for v in 0..half {
            let other = comptime!(v + half);
            let sent = select(upper, values[v], values[other]);
            let kept = select(upper, values[other], values[v]);
            values[v] = kept + plane_shuffle_xor(sent, comptime!(mask as u32).runtime());
        }
    }
    let mut sum = values[0usize];
    #[unroll]
    for step in steps..comptime!(lanes.ilog2() as usize) {
        sum += plane_shuffle_xor(sum, comptime!((lanes >> (step + 1)) as u32).runtime());
    }
    sum
}

#[cube]
fn reduce_over_planes(
    values: &mut Array<f32>,
    #[comptime] count: usize,
    #[comptime] reduction: Reduction,
    #[comptime] groups: Groups,
) {
    let planes = comptime!(groups.planes * groups.groups);
    let mut partial = Shared::<[f32]>::new_slice(comptime!(planes * count));
    let plane = UNIT_POS as usize / groups.lanes;
    let lane = UNIT_POS as usize % groups.lanes;
    if lane == 0 {
        #[unroll]
        for v in 0..count {
            partial[plane * count + v] = values[v];
        }
    }
    sync_cube();
    let first = group_of_cube(groups) * comptime!(groups.planes * count);
    #[unroll]
    for v in 0..count {
        let mut value = partial[first + v];
        #[unroll]
        for p in 1..groups.planes {
            value = reduced(value, partial[first + comptime!(p * count) + v], reduction);
        }
        values[v] = value;
    }
}

/// The path without plane operations: a tree in shared memory, one value after the other.
#[cube]
fn reduce_by_halves(
    values: &mut Array<f32>,
    #[comptime] count: usize,
    #[comptime] reduction: Reduction,
    #[comptime] groups: Groups,
) {
    let units = comptime!(groups.units());
    let mut partial = Shared::<[f32]>::new_slice(comptime!(groups.cube_units()));
    let unit = unit_of_group(groups);
    let first = group_of_cube(groups) * units;
    #[unroll]
    for v in 0..count {
        partial[first + unit] = values[v];
        sync_cube();
        let mut half = comptime!(units as u32 / 2).runtime() as usize;
        while half > 0 {
            if unit < half {
                let other = partial[first + unit + half];
                partial[first + unit] = reduced(partial[first + unit], other, reduction);
            }
            sync_cube();
            half /= 2;
        }
        values[v] = partial[first];
        sync_cube();
    }
}

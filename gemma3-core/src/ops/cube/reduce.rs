//! Sums over the units of a cube or of a part of it, with plane operations and without.

use cubecl::prelude::*;

/// How the units of a cube are divided: groups of planes, each of which works on results of its own.
/// Cubes have the dimensions `[lanes, planes * groups, 1]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Groups {
    /// Units of a plane; a power of two. Without plane operations any row of units serves as one.
    pub lanes: usize,
    /// Planes of a group; a power of two.
    pub planes: usize,
    /// Groups of a cube.
    pub groups: usize,
    /// Whether the device has plane operations, on planes of exactly `lanes` units.
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
        Self { planes: self.planes * self.groups, groups: 1, ..*self }
    }

    /// The dimensions of a cube.
    pub fn dim(&self) -> CubeDim {
        CubeDim::new_2d(self.lanes as u32, (self.planes * self.groups) as u32)
    }
}

/// The unit's index in its group.
#[cube]
pub(crate) fn unit_of_group(#[comptime] groups: Groups) -> usize {
    (UNIT_POS_Y as usize % groups.planes) * groups.lanes + UNIT_POS_X as usize
}

/// The group's index in its cube.
#[cube]
pub(crate) fn group_of_cube(#[comptime] groups: Groups) -> usize {
    UNIT_POS_Y as usize / groups.planes
}

/// Replaces each of the first `count` values by its sum over the group's units, in all of them. Every unit of
/// the cube has to come here, since it waits for the others.
#[cube]
pub(crate) fn group_sum(values: &mut Array<f32>, #[comptime] count: usize, #[comptime] groups: Groups) {
    if comptime!(groups.plane_operations) {
        #[unroll]
        for v in 0..count {
            values[v] = plane_sum(values[v]);
        }
        if comptime!(groups.planes > 1) {
            sum_over_planes(values, count, groups);
        }
    } else {
        sum_by_halves(values, count, groups);
    }
}

#[cube]
fn sum_over_planes(values: &mut Array<f32>, #[comptime] count: usize, #[comptime] groups: Groups) {
    let planes = comptime!(groups.planes * groups.groups);
    let mut partial = Shared::<[f32]>::new_slice(comptime!(planes * count));
    let plane = UNIT_POS_Y as usize;
    if UNIT_POS_X == 0 {
        #[unroll]
        for v in 0..count {
            partial[plane * count + v] = values[v];
        }
    }
    sync_cube();
    let first = group_of_cube(groups) * comptime!(groups.planes * count);
    #[unroll]
    for v in 0..count {
        let mut sum = partial[first + v];
        #[unroll]
        for p in 1..groups.planes {
            sum += partial[first + comptime!(p * count) + v];
        }
        values[v] = sum;
    }
}

/// The path without plane operations: a tree in shared memory, one value after the other.
#[cube]
fn sum_by_halves(values: &mut Array<f32>, #[comptime] count: usize, #[comptime] groups: Groups) {
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
                partial[first + unit] += other;
            }
            sync_cube();
            half /= 2;
        }
        values[v] = partial[first];
        sync_cube();
    }
}

//! Sums up to each unit of a cube, and the largest of a cube, with plane operations and without.

use cubecl::prelude::*;

use super::wide::{Sum, add_sums};
use crate::ops::cube::reduce::Groups;

/// Words of shared memory of [`scan`] and [`largest`].
pub(crate) const fn scratch_words(groups: Groups) -> usize {
    if groups.plane_operations { 3 * groups.planes * groups.groups } else { 6 * groups.cube_units() }
}

/// The largest of ordered bits, the lowest id that has it, and the lowest fault.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Largest {
    pub order: u32,
    pub id: u32,
    pub fault: u32,
}

/// The sum of all units up to and including this one. Every unit of the cube has to come here.
#[cube]
pub(crate) fn scan(scratch: &mut [u32], sum: &Sum, #[comptime] groups: Groups) -> Sum {
    let mut all = Sum { count: sum.count, low: sum.low, high: sum.high };
    if comptime!(groups.plane_operations) {
        #[unroll]
        for step in 0..comptime!(groups.lanes.ilog2() as usize) {
            let count = plane_shuffle_up(all.count, comptime!(1u32 << step));
            let low = plane_shuffle_up(all.low, comptime!(1u32 << step));
            let high = plane_shuffle_up(all.high, comptime!(1u32 << step));
            if UNIT_POS_X >= comptime!(1u32 << step) {
                let both = add_sums(&all, &Sum { count, low, high });
                all.count = both.count;
                all.low = both.low;
                all.high = both.high;
            }
        }
        let plane = UNIT_POS_Y as usize;
        if UNIT_POS_X == comptime!(groups.lanes as u32 - 1) {
            scratch[3 * plane] = all.count;
            scratch[3 * plane + 1] = all.low;
            scratch[3 * plane + 2] = all.high;
        }
        sync_cube();
        for p in 0..plane {
            let before = Sum { count: scratch[3 * p], low: scratch[3 * p + 1], high: scratch[3 * p + 2] };
            let both = add_sums(&all, &before);
            all.count = both.count;
            all.low = both.low;
            all.high = both.high;
        }
    } else {
        let units = comptime!(groups.cube_units());
        let unit = UNIT_POS as usize;
        // Two halves in turn, so that one barrier a step is enough.
        #[unroll]
        for step in 0..comptime!(units.ilog2() as usize) {
            let half = comptime!(step % 2 * 3 * units);
            scratch[half + 3 * unit] = all.count;
            scratch[half + 3 * unit + 1] = all.low;
            scratch[half + 3 * unit + 2] = all.high;
            sync_cube();
            if unit >= comptime!(1usize << step) {
                let other = half + 3 * (unit - comptime!(1usize << step));
                let before = Sum { count: scratch[other], low: scratch[other + 1], high: scratch[other + 2] };
                let both = add_sums(&all, &before);
                all.count = both.count;
                all.low = both.low;
                all.high = both.high;
            }
        }
    }
    sync_cube();
    all
}

/// The largest of all units, in all of them. Every unit of the cube has to come here.
#[cube]
pub(crate) fn largest(scratch: &mut [u32], own: &Largest, #[comptime] groups: Groups) -> Largest {
    let mut order = own.order;
    let mut id = own.id;
    let mut fault = own.fault;
    if comptime!(groups.plane_operations) {
        let highest = plane_max(order);
        id = plane_min(select(order == highest, id, 0xffff_ffffu32));
        order = highest;
        fault = plane_min(fault);
        let plane = UNIT_POS_Y as usize;
        if UNIT_POS_X == 0 {
            scratch[3 * plane] = order;
            scratch[3 * plane + 1] = id;
            scratch[3 * plane + 2] = fault;
        }
        sync_cube();
        for p in 0..comptime!(groups.planes * groups.groups) {
            let other = scratch[3 * p];
            let other_id = scratch[3 * p + 1];
            let better = other > order || (other == order && other_id < id);
            order = select(better, other, order);
            id = select(better, other_id, id);
            fault = u32::min(fault, scratch[3 * p + 2]);
        }
    } else {
        let unit = UNIT_POS as usize;
        scratch[3 * unit] = order;
        scratch[3 * unit + 1] = id;
        scratch[3 * unit + 2] = fault;
        sync_cube();
        let mut half = comptime!(groups.cube_units() as u32 / 2).runtime() as usize;
        while half > 0 {
            if unit < half {
                let at = 3 * (unit + half);
                let better = scratch[at] > order || (scratch[at] == order && scratch[at + 1] < id);
                order = select(better, scratch[at], order);
                id = select(better, scratch[at + 1], id);
                fault = u32::min(fault, scratch[at + 2]);
                scratch[3 * unit] = order;
                scratch[3 * unit + 1] = id;
                scratch[3 * unit + 2] = fault;
            }
            sync_cube();
            half /= 2;
        }
        order = scratch[0];
        id = scratch[1];
        fault = scratch[2];
    }
    sync_cube();
    Largest { order, id, fault }
}

//! Sine and cosine of rotary embeddings, the same on every device.
//!
//! Angles reach the number of positions, and shading languages promise little for large ones. The angle is
//! the f32 product of position and frequency, as in the reference; it is reduced by multiples of pi / 2 that
//! are exact up to 131,072, and the rest goes through the minimax polynomials of single precision.

use cubecl::prelude::*;

use crate::ops::cube::packed::Quad;

/// The leading 8 bits of pi / 2, the next 7, and the rest: products of the first two with up to 17 bits are
/// exact.
const FIRST: f32 = 1.570_312_5;
const SECOND: f32 = 126.0 / 64.0 / 4096.0;
const REST: f32 = (std::f64::consts::FRAC_PI_2 - FIRST as f64 - SECOND as f64) as f32;

/// A quad of the first half of a head and the one of the second that it turns with, turned.
#[cube]
pub(crate) fn turned(first: Quad, second: Quad, position: u32, frequencies: Quad) -> (Quad, Quad) {
    let mut cosines = Quad::empty();
    let mut sines = Quad::empty();
    #[unroll]
    for i in 0..4usize {
        let (cos, sin) = cos_sin(f32::cast_from(position) * frequencies.extract(i));
        cosines.insert(i, cos);
        sines.insert(i, sin);
    }
    (first * cosines - second * sines, second * cosines + first * sines)
}

/// (cosine, sine) of an angle in 0..=131072, within 2e-7.
#[cube]
fn cos_sin(angle: f32) -> (f32, f32) {
    let quarters = f32::floor(angle * comptime!(std::f32::consts::FRAC_2_PI) + 0.5f32);
    let whole = u32::cast_from(quarters);
    // Compilers of shading languages may factor a common number out of a sum of products, which rounds; so it
    // takes three ways here.
    let r = angle - quarters * comptime!(FIRST);
    let r = r - f32::cast_from(whole) * comptime!(SECOND);
    let r = r - f32::cast_from(i32::cast_from(quarters)) * comptime!(REST);
    let square = r * r;
    let sine =
        r + r * square * (-0.166_666_55f32 + square * (0.008_332_161f32 + square * -0.000_195_152_96f32));
    let cosine = 1.0f32 - 0.5f32 * square
        + square
            * square
            * (0.041_666_646f32 + square * (-0.001_388_731_6f32 + square * 0.000_024_433_157f32));
    let quadrant = whole & 3u32;
    let swapped = (quadrant & 1u32) == 1u32;
    let cos = select(swapped, sine, cosine);
    let sin = select(swapped, cosine, sine);
    let cos = select(quadrant == 1u32 || quadrant == 2u32, -cos, cos);
    let sin = select(quadrant >= 2u32, -sin, sin);
    (cos, sin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cube::testing::*;

    #[cube(launch_unchecked)]
    fn cos_sin_kernel(angles: &[f32], cosines: &mut [f32], sines: &mut [f32]) {
        let at = ABSOLUTE_POS;
        if at < angles.len() {
            let (cos, sin) = cos_sin(angles[at]);
            cosines[at] = cos;
            sines[at] = sin;
        }
    }

    #[test]
    fn angles_as_large_as_any_position_keep_their_sine() {
        let Some(client) = client() else { return };
        let mut random = Random::new(10);
        let mut angles: Vec<f32> = (0..1000).map(|i| i as f32 * 0.01).collect();
        angles.extend((0..3000).map(|_| (random.unit() + 1.0) * 65536.0));
        angles.extend([131_071.0, 131_072.0, 0.0]);
        let len = angles.len();
        let (cosines, sines) = (poisoned(&client, len), poisoned(&client, len));
        let floats =
            |handle: &cubecl::server::Handle| unsafe { BufferArg::from_raw_parts(handle.clone(), len) };
        // SAFETY: the kernel stays below the length.
        unsafe {
            cos_sin_kernel::launch_unchecked(
                &client,
                CubeCount::Static(len.div_ceil(64) as u32, 1, 1),
                CubeDim::new_1d(64),
                floats(&upload(&client, &angles)),
                floats(&cosines),
                floats(&sines),
            );
        }
        let results = download(&client, &cosines).into_iter().zip(download(&client, &sines));
        for (angle, (cos, sin)) in angles.iter().zip(results) {
            let (expected_sin, expected_cos) = f64::from(*angle).sin_cos();
            // Half a bit of the polynomials, and as much of the reduced angle.
            assert!((f64::from(cos) - expected_cos).abs() < 2e-7, "cos {angle} is {cos}, not {expected_cos}");
            assert!((f64::from(sin) - expected_sin).abs() < 2e-7, "sin {angle} is {sin}, not {expected_sin}");
        }
    }
}

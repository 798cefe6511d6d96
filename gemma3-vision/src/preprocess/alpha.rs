//! What becomes of transparency.

/// What becomes of an image's alpha channel, whether it comes from a file, from encoded bytes or from RGBA
/// pixels in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Alpha {
    /// Ignore it: the colours under transparent pixels show. That is what transformers does with image files,
    /// and so what the models see in practice. Under the transparent pixels of a drawing there is often black,
    /// and black lines on it can't be told from the ground.
    #[default]
    Drop,
    /// Lay the image on this colour, \[red, green, blue\]:
    /// `round((colour * alpha + ground * (255 - alpha)) / 255)`. Equals Pillow's `alpha_composite` on an opaque
    /// ground for every colour, ground and alpha.
    On([u8; 3]),
}

impl Alpha {
    /// On white, as transformers 5 does with a Pillow image in memory (4 drops there, too).
    pub const ON_WHITE: Self = Self::On([255; 3]);

    /// What shows of a pixel.
    pub(super) fn apply(self, colour: [u8; 3], alpha: u8) -> [u8; 3] {
        match self {
            Self::Drop => colour,
            Self::On(ground) => {
                std::array::from_fn(|channel| composite(colour[channel], ground[channel], alpha))
            }
        }
    }
}

/// One level over another.
fn composite(colour: u8, ground: u8, alpha: u8) -> u8 {
    let [colour, ground, alpha] = [colour, ground, alpha].map(u32::from);
    // At most 255, as the sum is at most 255 * 255. Rounded to the nearest; 255 is odd, so there are no ties.
    ((colour * alpha + ground * (255 - alpha) + 127) / 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pixel_shows_as_much_as_it_is_opaque() {
        let colour = [10, 20, 30];
        for (alpha, dropped, on_white, on_green) in [
            (0, colour, [255, 255, 255], [0, 200, 100]),
            (255, colour, colour, colour),
            (128, colour, [132, 137, 142], [5, 110, 65]),
        ] {
            assert_eq!(Alpha::Drop.apply(colour, alpha), dropped, "{alpha}");
            assert_eq!(Alpha::ON_WHITE.apply(colour, alpha), on_white, "{alpha}");
            assert_eq!(Alpha::On([0, 200, 100]).apply(colour, alpha), on_green, "{alpha}");
        }
    }

    /// Pillow computes with 7 more bits and a shift for the division.
    #[test]
    fn every_level_is_pillows() {
        fn pillow(colour: u32, ground: u32, alpha: u32) -> u32 {
            let sum = 128 * (colour * alpha + ground * (255 - alpha)) + (0x80 << 7);
            (((sum >> 8) + sum) >> 8) >> 7
        }
        for alpha in 0..=255 {
            for colour in 0..=255 {
                for ground in 0..=255 {
                    let expected = pillow(colour.into(), ground.into(), alpha.into());
                    assert_eq!(u32::from(composite(colour, ground, alpha)), expected);
                }
            }
        }
    }
}

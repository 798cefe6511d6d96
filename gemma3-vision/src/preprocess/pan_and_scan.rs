//! Pan and scan: crops of an elongated image, shown to the model besides the whole.

/// A part of an image, in pixels from its upper left corner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Crop {
    /// Pixels to the left of the crop.
    pub x: u32,
    /// Pixels above the crop.
    pub y: u32,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

/// When and how an elongated image is cut into crops along its longer side. [`PanAndScan::default`] has the
/// values of transformers' processor (256, 4, 1.2); each crop costs as many soft tokens as an image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PanAndScan {
    /// Images whose crops would have a side below this many pixels aren't cut. 0 counts as 1.
    pub min_crop_size: u32,
    /// The most crops of an image. 0 turns pan and scan off; more than [`Self::MAX_CROPS`] counts as that.
    pub max_num_crops: usize,
    /// Images whose longer side is less than this many times the shorter one aren't cut.
    pub min_ratio_to_activate: f64,
}

impl Default for PanAndScan {
    fn default() -> Self {
        Self { min_crop_size: 256, max_num_crops: 4, min_ratio_to_activate: 1.2 }
    }
}

impl PanAndScan {
    /// No image has more crops than this, whatever the settings: with 256 soft tokens each they fill the
    /// longest context of Gemma 3.
    pub const MAX_CROPS: usize = 512;

    /// The crops of an image of `width` x `height` pixels, from left to right or from top to bottom; none if
    /// it isn't elongated enough.
    ///
    /// They cover the image without overlap. All have the same size except for the last, which may be smaller.
    pub fn crops(&self, width: u32, height: u32) -> Vec<Crop> {
        if width >= height {
            let columns = self.pieces(width, height).into_iter();
            columns.map(|(x, width)| Crop { x, y: 0, width, height }).collect()
        } else {
            let rows = self.pieces(height, width).into_iter();
            rows.map(|(y, height)| Crop { x: 0, y, width, height }).collect()
        }
    }

    /// Start and length of the pieces of the longer side.
    fn pieces(&self, longer: u32, shorter: u32) -> Vec<(u32, u32)> {
        let ratio = f64::from(longer) / f64::from(shorter);
        if shorter == 0 || ratio < self.min_ratio_to_activate {
            return Vec::new();
        }
        let smallest = self.min_crop_size.max(1);
        // Rounded half up. At least 2, however close to a square, unless only one is allowed.
        let by_ratio = (ratio + 0.5).floor() as u32;
        let most = self.max_num_crops.min(Self::MAX_CROPS) as u32;
        let count = by_ratio.min(longer / smallest).max(2).min(most);
        if count == 0 {
            return Vec::new();
        }
        let length = longer.div_ceil(count);
        if length.min(shorter) < smallest {
            return Vec::new();
        }
        // With tiny pieces the last ones may lie behind the border; they have no pixels.
        let starts = (0..count).map(|index| u64::from(index) * u64::from(length));
        starts
            .filter_map(|start| u32::try_from(start).ok().filter(|start| *start < longer))
            .map(|start| (start, length.min(longer - start)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_image_is_cut_from_left_to_right_and_a_tall_one_from_top_to_bottom() {
        let crop = |x, y, width, height| Crop { x, y, width, height };
        let options = PanAndScan::default();
        assert_eq!(options.crops(601, 400), [crop(0, 0, 301, 400), crop(301, 0, 300, 400)]);
        assert_eq!(options.crops(400, 601), [crop(0, 0, 400, 301), crop(0, 301, 400, 300)]);
        assert_eq!(options.crops(896, 896), []);
    }

    #[test]
    fn absurd_settings_give_at_most_512_crops_inside_of_the_image() {
        let sizes = [0, 1, 2, 5, 255, 65_535, u32::MAX];
        let ratios = [f64::NEG_INFINITY, -1.0, 0.0, 1.2, f64::INFINITY, f64::NAN];
        for min_crop_size in sizes {
            for max_num_crops in [0, 1, 2, 3, 7, 600, usize::MAX] {
                for min_ratio_to_activate in ratios {
                    let options = PanAndScan { min_crop_size, max_num_crops, min_ratio_to_activate };
                    for (width, height) in sizes.into_iter().flat_map(|w| sizes.map(|h| (w, h))) {
                        let crops = options.crops(width, height);
                        assert!(crops.len() <= max_num_crops.min(PanAndScan::MAX_CROPS), "{options:?}");
                        let inside = |c: &Crop| {
                            c.width > 0
                                && c.height > 0
                                && u64::from(c.x) + u64::from(c.width) <= u64::from(width)
                                && u64::from(c.y) + u64::from(c.height) <= u64::from(height)
                        };
                        assert!(crops.iter().all(inside), "{options:?} {width}x{height}: {crops:?}");
                    }
                }
            }
        }
    }
}

//! Names of the files of a model that was written in several: `PREFIX-00001-of-00003.safetensors`, or `.gguf`.
//! Hugging Face's tools and llama.cpp's number them alike, from 1, in five digits.

/// The name of one file of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PartName<'a> {
    pub(super) prefix: &'a str,
    /// From 1 to `parts`.
    pub(super) part: u32,
    pub(super) parts: u32,
    /// With its dot.
    extension: &'a str,
}

impl<'a> PartName<'a> {
    /// Takes the name of a file apart; `None` for other names, and for numbers that no set has.
    pub(super) fn parse(name: &'a str, extension: &'a str) -> Option<Self> {
        let (rest, parts) = name.strip_suffix(extension)?.rsplit_once("-of-")?;
        let (prefix, part) = rest.rsplit_once('-')?;
        let (part, parts) = (number(part)?, number(parts)?);
        (1..=parts).contains(&part).then_some(Self { prefix, part, parts, extension })
    }

    /// The name of another file of the set.
    pub(super) fn of_part(&self, part: u32) -> String {
        format!("{}-{part:05}-of-{:05}{}", self.prefix, self.parts, self.extension)
    }

    /// The names of all files of the set, in order.
    pub(super) fn all(&self) -> impl Iterator<Item = String> {
        (1..=self.parts).map(|part| self.of_part(part))
    }
}

/// Five digits, so that a set has one spelling.
fn number(digits: &str) -> Option<u32> {
    let is_number = digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_apart_and_put_together() {
        let name = "gemma-3-of-27b-00002-of-00003.gguf";
        let part = PartName::parse(name, ".gguf").expect("a part");
        assert_eq!((part.prefix, part.part, part.parts), ("gemma-3-of-27b", 2, 3));
        assert_eq!(part.of_part(2), name);
        let names: Vec<String> = part.all().collect();
        assert_eq!(names[2], "gemma-3-of-27b-00003-of-00003.gguf");
        assert_eq!(names.len(), 3);
    }

    #[test]
    fn other_names_are_no_parts() {
        for name in [
            "model.safetensors",
            "model-00001-of-00002.gguf",
            "model-1-of-2.safetensors",
            "model-00000-of-00002.safetensors",
            "model-00003-of-00002.safetensors",
            "model-00001-of-99999999999999.safetensors",
            "model-+0001-of-00002.safetensors",
            "model_00001-of-00002.safetensors",
            "00001-of-00002.safetensors",
        ] {
            assert_eq!(PartName::parse(name, ".safetensors"), None, "{name}");
        }
    }
}

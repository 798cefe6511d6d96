//! The names of Gemma 3's special tokens: those that `skip_special` leaves out when decoding and that
//! must not come out of a user's text.

/// Padding, id 0.
pub const PAD: &str = "<pad>";
/// End of text, id 1: the stop id of the base models.
pub const EOS: &str = "<eos>";
/// Begin of text, id 2: Gemma needs exactly one.
pub const BOS: &str = "<bos>";
/// Unknown, id 3: never produced, since Gemma falls back to bytes.
pub const UNKNOWN: &str = "<unk>";
/// Opens a chat turn, id 105.
pub const START_OF_TURN: &str = "<start_of_turn>";
/// Closes a chat turn, id 106: the stop id of the instruction-tuned models.
pub const END_OF_TURN: &str = "<end_of_turn>";
/// Opens an image, id 255999.
pub const START_OF_IMAGE: &str = "<start_of_image>";
/// Closes an image, id 256000.
pub const END_OF_IMAGE: &str = "<end_of_image>";
/// Stands for one image vector, id 262144; only the vocabularies of 4B and larger have it.
pub const IMAGE_SOFT_TOKEN: &str = "<image_soft_token>";

/// All of them, in the order of their ids.
pub const ALL: [&str; 9] =
    [PAD, EOS, BOS, UNKNOWN, START_OF_TURN, END_OF_TURN, START_OF_IMAGE, END_OF_IMAGE, IMAGE_SOFT_TOKEN];

//! [`Roles`]: conversations as users send them, made into turns that Gemma's template accepts.

use std::borrow::Cow;

use super::turns::is_python_space;
use super::{Message, Part, Role};

/// What becomes of messages that Gemma's template refuses, or takes for something else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Roles {
    /// Nothing: the conversation reaches the template as it is, which refuses turns that do not alternate, as the
    /// reference does.
    #[default]
    Strict,
    /// The messages become at most one system message and turns that alternate, beginning with the user's. In this
    /// order:
    ///
    /// 1. `developer` is `system`. `assistant` is `model`. Any other role (`tool`, `function`, `ipython`) is the
    ///    user's: what a tool answers is said to the model.
    /// 2. System messages in front are joined. One that comes later is part of a user's turn, where it stands, and so
    ///    is one in front that has images, with those after it: Gemma has no system turn.
    /// 3. Messages side by side of one role are one message: their contents follow each other, texts that meet
    ///    with an empty line in between. All texts of a system message are joined so (the template reads only the
    ///    first).
    /// 4. A conversation that does not begin with a user's turn, after the system message, gets an empty one
    ///    there. So a system message alone is not lost.
    ///
    /// A conversation that alternates already stays as it is. An empty one stays empty.
    Merge,
}

impl Roles {
    /// The conversation for the template.
    ///
    /// ```
    /// use gemma3_tokenizer::{ChatTemplate, Message, Role, Roles};
    ///
    /// let messages = [
    ///     Message::new(Role::from_name("developer"), ["Be brief.".into()]),
    ///     Message::user("Hello"),
    ///     Message::user("Who are you?"),
    /// ];
    /// assert!(ChatTemplate::render(&messages, true).is_err());
    /// assert_eq!(
    ///     ChatTemplate::render(&Roles::Merge.apply(&messages), true)?,
    ///     "<bos><start_of_turn>user\nBe brief.\n\nHello\n\nWho are you?<end_of_turn>\n<start_of_turn>model\n",
    /// );
    /// # Ok::<(), gemma3_tokenizer::ChatError>(())
    /// ```
    pub fn apply(self, messages: &[Message]) -> Cow<'_, [Message]> {
        match self {
            Self::Strict => Cow::Borrowed(messages),
            Self::Merge => Cow::Owned(merge(messages)),
        }
    }
}

fn merge(messages: &[Message]) -> Vec<Message> {
    let mut merged: Vec<Message> = Vec::with_capacity(messages.len());
    for message in messages {
        let is_in_front = merged.last().is_none_or(|last| last.role == Role::System);
        let role = match message.role.name() {
            "system" | "developer" if is_in_front && message.images() == 0 => Role::System,
            "model" => Role::Model,
            _ => Role::User,
        };
        let content = match role {
            Role::System => message.content.iter().cloned().fold(Vec::new(), appended),
            _ => message.content.clone(),
        };
        match merged.last_mut().filter(|last| last.role == role) {
            Some(last) => {
                let mut content = content.into_iter();
                let first = std::mem::take(&mut last.content);
                last.content = content.next().into_iter().fold(first, appended);
                last.content.extend(content);
            }
            None => merged.push(Message { role, content }),
        }
    }
    // The template refuses a system message without text.
    merged.retain(|message| message.role != Role::System || !message.content.is_empty());
    let first = merged.iter().position(|message| message.role != Role::System).unwrap_or(merged.len());
    let begins_with_user = merged.get(first).is_some_and(|message| message.role == Role::User);
    if !messages.is_empty() && !begins_with_user {
        merged.insert(first, Message { role: Role::User, content: Vec::new() });
    }
    merged
}

/// A content with a part more; a text after a text becomes one with it.
fn appended(mut content: Vec<Part>, part: Part) -> Vec<Part> {
    match (content.last_mut(), part) {
        (Some(Part::Text(text)), Part::Text(more)) => {
            if text.chars().all(is_python_space) {
                *text = more;
            } else if !more.chars().all(is_python_space) {
                text.truncate(text.trim_end_matches(is_python_space).len());
                text.push_str("\n\n");
                text.push_str(more.trim_start_matches(is_python_space));
            }
        }
        (_, part) => content.push(part),
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChatTemplate;

    fn named(role: &str, text: &str) -> Message {
        Message::new(Role::from_name(role), [text.into()])
    }

    fn merged(messages: &[(&str, &str)]) -> String {
        let messages: Vec<Message> = messages.iter().map(|(role, text)| named(role, text)).collect();
        ChatTemplate::render(&Roles::Merge.apply(&messages), true).expect("turns that alternate")
    }

    const ANSWER: &str = "<start_of_turn>model\n";

    fn user(text: &str) -> String {
        format!("<start_of_turn>user\n{text}<end_of_turn>\n")
    }

    fn model(text: &str) -> String {
        format!("<start_of_turn>model\n{text}<end_of_turn>\n")
    }

    #[test]
    fn a_conversation_that_alternates_stays_as_it_is() {
        let parts = Message::new(Role::User, ["a".into(), "b".into(), Part::Image, " c ".into()]);
        let messages = [Message::system(" S "), parts, Message::model(" m "), Message::user("q")];
        assert_eq!(*Roles::Merge.apply(&messages), messages);
        assert_eq!(*Roles::Strict.apply(&messages), messages);
        assert!(Roles::Merge.apply(&[]).is_empty());
    }

    #[test]
    fn a_developer_is_the_system_and_system_messages_in_front_are_joined() {
        let expected = format!("<bos>{}{ANSWER}", user("A\n\nB\n\nC\n\nhi"));
        assert_eq!(
            merged(&[("developer", "A"), ("system", "B\n"), ("developer", "C"), ("user", "hi")]),
            expected
        );
        let parts = Message::new(Role::System, ["A".into(), "B".into(), "C".into()]);
        let parts = Roles::Merge.apply(&[parts, Message::user("hi")]).into_owned();
        assert_eq!(ChatTemplate::render(&parts, true).expect("a text"), expected);
    }

    #[test]
    fn a_system_message_in_the_middle_is_said_where_it_stands() {
        assert_eq!(
            merged(&[("user", "a"), ("assistant", "b"), ("system", "S"), ("user", "c")]),
            format!("<bos>{}{}{}{ANSWER}", user("a"), model("b"), user("S\n\nc")),
        );
        assert_eq!(merged(&[("user", "a"), ("system", "S")]), format!("<bos>{}{ANSWER}", user("a\n\nS")),);
    }

    #[test]
    fn messages_side_by_side_are_one_turn() {
        assert_eq!(
            merged(&[("user", "a "), ("user", " b"), ("assistant", "c"), ("model", "d"), ("user", "e")]),
            format!("<bos>{}{}{}{ANSWER}", user("a\n\nb"), model("c\n\nd"), user("e")),
        );
        // A message without text adds no empty line.
        assert_eq!(
            merged(&[("user", "a"), ("user", ""), ("user", " \n"), ("user", "b")]),
            format!("<bos>{}{ANSWER}", user("a\n\nb")),
        );
    }

    #[test]
    fn a_tools_answer_is_the_users() {
        assert_eq!(
            merged(&[("user", "a"), ("assistant", "call()"), ("tool", "42"), ("function", "43")]),
            format!("<bos>{}{}{}{ANSWER}", user("a"), model("call()"), user("42\n\n43")),
        );
    }

    #[test]
    fn a_conversation_begins_with_a_user() {
        let expected = format!("<bos>{}{}{}{ANSWER}", user(""), model("hello"), user("hi"));
        assert_eq!(merged(&[("assistant", "hello"), ("user", "hi")]), expected);
        let expected = format!("<bos>{}{}{ANSWER}", user("S\n\n"), model("hello"));
        assert_eq!(merged(&[("system", "S"), ("assistant", "hello")]), expected);
        assert_eq!(merged(&[("system", "S")]), format!("<bos>{}{ANSWER}", user("S\n\n")));
        let nothing = [Message { role: Role::System, content: Vec::new() }];
        let nothing = ChatTemplate::render(&Roles::Merge.apply(&nothing), true).expect("a text");
        assert_eq!(nothing, format!("<bos>{}{ANSWER}", user("")));
    }

    #[test]
    fn images_stay_in_their_place() {
        let image = |text: &str| Message::new(Role::User, [text.into(), Part::Image]);
        let messages = [image("a"), image("b"), Message::user("c"), Message::model("d")];
        let expected =
            Message::new(Role::User, ["a".into(), Part::Image, "b".into(), Part::Image, Part::from("c")]);
        assert_eq!(*Roles::Merge.apply(&messages), [expected, Message::model("d")]);
        // Only text can be a system message.
        let seen = Message::new(Role::System, ["S".into(), Part::Image]);
        assert_eq!(
            *Roles::Merge.apply(&[seen, Message::user("c")]),
            [Message::new(Role::User, ["S".into(), Part::Image, Part::from("c")])],
        );
    }
}

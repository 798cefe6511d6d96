//! The first question to the hub: does the repository exist, may we read it, which commit is it,
//! and which files has it.
//!
//! It is asked here and not through the `hf-hub` crate, because that crate sets no time limit: a
//! network that swallows packets would keep an application waiting for ever.

use std::time::Duration;

use serde_json::Value;
use ureq::http::{HeaderMap, StatusCode};

use super::HubError;
use super::id::{is_commit, is_safe_path};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A listing of ten thousand files is about 1 MB.
const LISTING_LIMIT_BYTES: u64 = 16 << 20;

/// A repository at one commit.
#[derive(Debug)]
pub(super) struct Listing {
    /// The commit, in hexadecimal.
    pub commit: String,
    /// Paths of the files; only those that are safe as paths and in addresses.
    pub files: Vec<String>,
}

impl Listing {
    pub(super) fn has(&self, file: &str) -> bool {
        self.files.iter().any(|other| other == file)
    }
}

/// Asks the hub for a repository at a revision.
pub(super) fn list(
    endpoint: &str,
    token: Option<&str>,
    repository: &str,
    revision: &str,
) -> Result<Listing, HubError> {
    let page = format!("{endpoint}/{repository}");
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(ANSWER_TIMEOUT))
        .timeout_recv_body(Some(ANSWER_TIMEOUT))
        // Renamed repositories answer with a redirect to their new name.
        .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
        .build()
        .into();
    let revision = revision.replace('/', "%2F");
    let mut request = agent.get(format!("{endpoint}/api/models/{repository}/revision/{revision}"));
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let mut response = request.call().map_err(|error| unreachable(endpoint, &error))?;
    if !response.status().is_success() {
        return Err(refusal(
            response.status(),
            &page,
            "repository or revision",
            hub_words(response.headers()),
        ));
    }
    let text = response
        .body_mut()
        .with_config()
        .limit(LISTING_LIMIT_BYTES)
        .read_to_string()
        .map_err(|error| unreachable(endpoint, &error))?;
    parse(&text).map_err(|reason| HubError::BadAnswer { page, reason })
}

fn parse(text: &str) -> Result<Listing, String> {
    let json: Value = serde_json::from_str(text).map_err(|error| format!("expected JSON: {error}"))?;
    let commit =
        json["sha"].as_str().filter(|commit| is_commit(commit)).ok_or("expected `sha` to be a commit")?;
    let siblings = json["siblings"].as_array().ok_or("expected `siblings` to be a list of files")?;
    Ok(Listing {
        commit: commit.to_owned(),
        files: siblings
            .iter()
            .filter_map(|sibling| sibling["rfilename"].as_str())
            .filter(|file| is_safe_path(file))
            .map(str::to_owned)
            .collect(),
    })
}

/// The error for an answer that is no success.
pub(super) fn refusal(status: StatusCode, page: &str, what: &str, detail: String) -> HubError {
    let page = page.to_owned();
    match status {
        StatusCode::UNAUTHORIZED => HubError::Unauthorized { page, detail },
        StatusCode::FORBIDDEN => HubError::Forbidden { page, detail },
        StatusCode::NOT_FOUND => HubError::NotFound { what: what.to_owned(), page },
        status => HubError::Status { status: status.as_u16(), page, detail },
    }
}

pub(super) fn unreachable(endpoint: &str, error: &ureq::Error) -> HubError {
    HubError::Unreachable { endpoint: endpoint.to_owned(), reason: error.to_string() }
}

/// What the hub says in its own header about a refusal: shortened, and without control characters,
/// because it ends up on a terminal.
fn hub_words(headers: &HeaderMap) -> String {
    let words: String = headers
        .get("x-error-message")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .chars()
        .filter(|character| !character.is_control())
        .take(300)
        .collect();
    if words.is_empty() { words } else { format!(" (\"{words}\")") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn a_listing_has_the_commit_and_the_files() {
        let text = format!(
            r#"{{"sha":"{COMMIT}","siblings":[{{"rfilename":"config.json"}},{{"rfilename":"a/b.gguf"}}]}}"#
        );
        let listing = parse(&text).unwrap();
        assert_eq!(listing.commit, COMMIT);
        assert!(listing.has("config.json") && listing.has("a/b.gguf"));
        assert!(!listing.has("b.gguf"));
    }

    #[test]
    fn files_that_could_leave_their_folder_are_passed_over() {
        let text = format!(
            r#"{{"sha":"{COMMIT}","siblings":[{{"rfilename":"../x"}},{{"rfilename":"/etc/x"}},{{"rfilename":7}},{{}}]}}"#
        );
        assert!(parse(&text).unwrap().files.is_empty());
    }

    #[test]
    fn answers_that_are_not_the_hubs_are_errors() {
        for text in [
            "",
            "<html>log in to this network</html>",
            "[]",
            "{}",
            r#"{"sha":"../../x","siblings":[]}"#,
            r#"{"sha":"0123456789abcdef0123456789abcdef01234567"}"#,
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}

//! What the environment says where the options say nothing: folders, account, address.

use std::env;
use std::path::PathBuf;

use super::{FetchOptions, HubError, Token};

/// The hub's cache folder.
pub(super) fn hub_cache(options: &FetchOptions) -> Result<PathBuf, HubError> {
    if let Some(folder) = options.cache_dir.clone().or_else(|| path("HF_HUB_CACHE")) {
        return Ok(folder);
    }
    hub_home()
        .map(|home| home.join("hub"))
        .ok_or(HubError::NoCacheFolder { what: "the hub", variable: "HF_HOME" })
}

/// The account's token, if there is one.
pub(super) fn token(options: &FetchOptions) -> Option<String> {
    match &options.token {
        Token::Anonymous => None,
        Token::Given(token) => usable(token),
        Token::FromEnvironment => {
            env::var("HF_TOKEN").ok().and_then(|token| usable(&token)).or_else(token_file)
        }
    }
}

/// The address of the hub, if the public one is not meant.
pub(super) fn endpoint(options: &FetchOptions) -> Option<String> {
    options
        .endpoint
        .clone()
        .or_else(|| env::var("HF_ENDPOINT").ok())
        .map(|endpoint| endpoint.trim().trim_end_matches('/').to_owned())
        .filter(|endpoint| !endpoint.is_empty())
}

/// Whether only the cache may be used.
pub(super) fn is_offline(options: &FetchOptions) -> bool {
    options.offline.unwrap_or_else(|| {
        env::var("HF_HUB_OFFLINE").is_ok_and(|value| {
            ["1", "true", "yes", "on"].contains(&value.trim().to_ascii_lowercase().as_str())
        })
    })
}

/// The folder of the default model.
pub(super) fn gemma3_cache() -> Result<PathBuf, HubError> {
    path("GEMMA3_CACHE")
        .or_else(|| dirs::cache_dir().map(|folder| folder.join("gemma3")))
        .ok_or(HubError::NoCacheFolder { what: "gemma3", variable: "GEMMA3_CACHE" })
}

fn hub_home() -> Option<PathBuf> {
    path("HF_HOME").or_else(|| Some(dirs::home_dir()?.join(".cache").join("huggingface")))
}

fn token_file() -> Option<String> {
    let file = path("HF_TOKEN_PATH").or_else(|| Some(hub_home()?.join("token")))?;
    usable(&std::fs::read_to_string(file).ok()?)
}

/// A token goes into a header, so anything but visible characters makes it none.
fn usable(token: &str) -> Option<String> {
    let token = token.trim();
    let is_visible = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    is_visible.then(|| token.to_owned())
}

fn path(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_before_the_environment() {
        let options = FetchOptions {
            cache_dir: Some("given".into()),
            endpoint: Some("http://hub.example/".into()),
            token: Token::Given(" secret\n".into()),
            offline: Some(true),
            revision: None,
        };
        assert_eq!(hub_cache(&options).unwrap(), PathBuf::from("given"));
        assert_eq!(endpoint(&options).as_deref(), Some("http://hub.example"));
        assert_eq!(token(&options).as_deref(), Some("secret"));
        assert!(is_offline(&options));
    }

    #[test]
    fn a_token_that_cannot_stand_in_a_header_is_none() {
        for text in ["", "  ", "a b", "a\r\nHost: x", "ä"] {
            assert_eq!(usable(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_debug_form_of_options_hides_the_token() {
        let options = FetchOptions { token: Token::Given("secret".into()), ..FetchOptions::default() };
        assert!(!format!("{options:?}").contains("secret"));
    }
}

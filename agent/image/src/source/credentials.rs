//! Who the agent is to a registry, from a file in the form of Docker's `config.json`.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

/// Names and passwords by HOST[:PORT].
#[derive(Clone, Default)]
pub struct Credentials(BTreeMap<String, (String, String)>);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The file of credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// It cannot be read.
    #[error("read the credentials {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not in the form of Docker's `config.json`.
    #[error("credentials {}: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong; never the secret itself.
        why: String,
    },
}

#[derive(Deserialize)]
struct RawFile {
    #[serde(default)]
    auths: BTreeMap<String, RawAuth>,
}

#[derive(Deserialize)]
struct RawAuth {
    /// Base64 of NAME:PASSWORD.
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl Credentials {
    /// Reads a file such as `/root/.docker/config.json`: of its `auths`, `auth` or `username` and `password`.
    ///
    /// # Errors
    /// [`CredentialsError`], without any secret in it.
    pub fn read(path: &Path) -> Result<Self, CredentialsError> {
        let bytes = fs::read(path).map_err(|source| CredentialsError::Read { path: path.into(), source })?;
        Self::parse(&bytes).map_err(|why| CredentialsError::Malformed { path: path.into(), why })
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        // The library's text may quote what it read: only the place is told.
        let raw: RawFile = serde_json::from_slice(bytes)
            .map_err(|e| format!("no JSON of the form {{\"auths\": ...}} at line {}", e.line()))?;
        let mut found = BTreeMap::new();
        for (host, auth) in raw.auths {
            let pair = match (auth.username, auth.password, auth.auth) {
                (Some(name), Some(password), _) => Some((name, password)),
                (_, _, Some(auth)) => STANDARD.decode(auth).ok().and_then(|pair| {
                    let pair = String::from_utf8(pair).ok()?;
                    pair.split_once(':').map(|(name, password)| (name.to_owned(), password.to_owned()))
                }),
                _ => None,
            };
            let pair = pair.ok_or_else(|| format!("for {host:?} there is no usable auth"))?;
            // Docker's own hub is written in its old form.
            let host = host.trim_start_matches("https://").trim_start_matches("http://");
            let host = host.split('/').next().unwrap_or(host);
            let host = if host == "index.docker.io" { "docker.io" } else { host };
            found.insert(host.to_ascii_lowercase(), pair);
        }
        Ok(Self(found))
    }

    pub(crate) fn of(&self, host: &str) -> RegistryAuth {
        match self.0.get(host) {
            Some((name, password)) => RegistryAuth::Basic(name.clone(), password.clone()),
            None => RegistryAuth::Anonymous,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_secrets_are_not_shown() {
        let text = br#"{"auths": {"https://index.docker.io/v1/": {"auth": "bWU6c2VjcmV0"},
            "R.example:5000": {"username": "you", "password": "hidden"}}, "credsStore": "x"}"#;
        let read = Credentials::parse(text).unwrap();
        assert_eq!(read.of("docker.io"), RegistryAuth::Basic("me".into(), "secret".into()));
        assert_eq!(read.of("r.example:5000"), RegistryAuth::Basic("you".into(), "hidden".into()));
        assert_eq!(read.of("other"), RegistryAuth::Anonymous);
        let shown = format!("{read:?}");
        assert!(shown.contains("docker.io") && !shown.contains("secret") && !shown.contains("hidden"));
    }

    #[test]
    fn malformed_files_are_told_without_their_secrets() {
        let refused = |text: &str| Credentials::parse(text.as_bytes()).unwrap_err();
        assert!(refused("secret").contains("line 1"));
        assert!(!refused(r#"{"auths": {"h": {"auth": 12345}}}"#).contains("12345"));
        assert!(refused(r#"{"auths": {"h": {"auth": "c2VjcmV0"}}}"#).contains("\"h\""));
        assert!(refused(r#"{"auths": {"h": {}}}"#).contains("no usable auth"));
    }
}

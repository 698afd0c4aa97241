//! The manifest of a registry, as far as one may be long.
//!
//! `oci-client` reads all of the answer before anybody can look at its length. So it only finds out who we are to the
//! registry, and the request is made here.
//!
//! The token that it asks for is read in the same way, before this code sees any of it, with a client that it makes
//! itself: there is no place for a layer that counts. What bounds that answer is [`super::DOCUMENT`], within which the
//! whole conversation has to end.

use oci_client::{Client, Reference, RegistryOperation, errors::OciDistributionError, secrets::RegistryAuth};
use reqwest::{StatusCode, header::ACCEPT};

use super::ACCEPTED;

/// The manifest could not be read.
pub(super) enum Failure {
    /// The registry said no, or nothing.
    Registry(OciDistributionError),
    /// There is more of it than a manifest has.
    TooLong,
}

impl<E: Into<OciDistributionError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Registry(error.into())
    }
}

/// All of it, if it has at most `max` bytes. `scheme` is http or https.
pub(super) async fn read(
    (registry, http): (&Client, &reqwest::Client),
    scheme: &str,
    image: &Reference,
    auth: &RegistryAuth,
    max: usize,
) -> Result<Vec<u8>, Failure> {
    let token = registry.auth(image, auth, RegistryOperation::Pull).await?;
    let name = image.digest().or_else(|| image.tag()).unwrap_or("latest");
    let url = format!("{scheme}://{}/v2/{}/manifests/{name}", image.registry(), image.repository());
    let request = http.get(&url).header(ACCEPT, ACCEPTED.join(", "));
    let request = match (token, auth) {
        (Some(token), _) => request.bearer_auth(token),
        (None, RegistryAuth::Basic(name, password)) => request.basic_auth(name, Some(password)),
        (None, _) => request,
    };
    let mut answer = request.send().await?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED => return Err(OciDistributionError::UnauthorizedError { url }.into()),
        status => {
            let message = status.canonical_reason().unwrap_or_default().to_owned();
            return Err(OciDistributionError::ServerError { code: status.as_u16(), url, message }.into());
        }
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if bytes.len() + chunk.len() > max {
            return Err(Failure::TooLong);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

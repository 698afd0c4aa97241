//! `--artifact`: a file that is brought into the sandbox.

use bulkhead_proto::v1::Artifact;

/// `URI[,digest=D][,path=P][,unpack[=BOOL]][,executable]`. A uri may have commas of its own: only what is known as an
/// option is taken off its end.
pub(crate) fn parse_artifact(text: &str) -> Result<Artifact, String> {
    let mut artifact = Artifact::default();
    let mut rest = text;
    while let Some((before, option)) = rest.rsplit_once(',') {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match (name, value) {
            ("digest", digest) => digest.clone_into(&mut artifact.digest),
            ("path", path) => path.clone_into(&mut artifact.path),
            ("unpack", "" | "true") => artifact.unpack = Some(true),
            ("unpack", "false") => artifact.unpack = Some(false),
            ("executable", "" | "true") => artifact.executable = true,
            ("executable", "false") => artifact.executable = false,
            ("unpack" | "executable", _) => return Err(format!("{name} is true or false")),
            _ => break,
        }
        rest = before;
    }
    if rest.is_empty() {
        return Err("write URI[,digest=sha256:HEX][,path=PATH][,unpack[=BOOL]][,executable]".to_owned());
    }
    rest.clone_into(&mut artifact.uri);
    Ok(artifact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_uri_in_any_order() {
        let plain = parse_artifact("/srv/a,b").unwrap();
        assert_eq!(plain, Artifact { uri: "/srv/a,b".into(), ..Artifact::default() });
        let full =
            parse_artifact("https://h/x?a=1,2,executable,path=bin/x,digest=sha256:00,unpack=false").unwrap();
        let want = Artifact {
            uri: "https://h/x?a=1,2".into(),
            digest: "sha256:00".into(),
            path: "bin/x".into(),
            unpack: Some(false),
            executable: true,
        };
        assert_eq!(full, want);
        assert_eq!(parse_artifact("/x,unpack").unwrap().unpack, Some(true));
    }

    #[test]
    fn what_is_meaningless_says_what_to_write() {
        assert!(parse_artifact("").unwrap_err().contains("URI"));
        assert!(parse_artifact(",path=x").unwrap_err().contains("URI"));
        assert!(parse_artifact("/x,unpack=maybe").unwrap_err().contains("true or false"));
    }
}

//! The address of an object: base, key, query.

use http::Uri;
use url::Url;

/// An address that keys are appended to. Has no Display: it may hold secrets.
#[derive(Clone)]
pub(super) struct Base {
    /// Up to the last slash, without user and password.
    prefix: String,
    query: Option<String>,
    /// `Authorization`, from user and password.
    pub(super) authorization: Option<String>,
    /// What people may see.
    pub(super) shown: String,
}

impl Base {
    pub(super) fn parse(address: &str) -> Result<Self, String> {
        use base64::Engine;
        let mut url = Url::parse(address).map_err(|error| error.to_string())?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err("not an address of HTTP".to_owned());
        }
        let decoded = |text: &str| {
            url::form_urlencoded::parse(text.replace('+', "%2B").as_bytes())
                .map(|(name, _)| name.into_owned())
                .next()
                .unwrap_or_default()
        };
        let authorization = (!url.username().is_empty() || url.password().is_some()).then(|| {
            let pair = format!(
                "{}:{}",
                decoded(url.username()),
                decoded(url.password().unwrap_or(""))
            );
            format!(
                "Basic {}",
                base64::engine::general_purpose::STANDARD.encode(pair)
            )
        });
        url.set_username("")
            .and_then(|()| url.set_password(None))
            .map_err(|()| "not an address of HTTP".to_owned())?;
        let query = url.query().map(str::to_owned);
        url.set_query(None);
        url.set_fragment(None);
        let mut prefix = url.to_string();
        let shown = prefix.trim_end_matches('/').to_owned();
        if !prefix.ends_with('/') {
            prefix.push('/');
        }
        Ok(Self {
            prefix,
            query,
            authorization,
            shown,
        })
    }

    /// The address of a key.
    pub(super) fn of(&self, key: &str) -> Result<Uri, http::uri::InvalidUri> {
        let mut address = self.prefix.clone();
        for byte in key.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                    address.push(char::from(byte));
                }
                other => address.push_str(&format!("%{other:02X}")),
            }
        }
        if let Some(query) = &self.query {
            address.push('?');
            address.push_str(query);
        }
        address.parse()
    }
}

/// The address a redirection points to.
pub(super) fn redirected(from: &Uri, location: &str) -> Option<Uri> {
    let base = Url::parse(&from.to_string()).ok()?;
    let target = base.join(location).ok()?;
    // From TLS to no TLS is no redirection to follow.
    let kept = target.scheme() == "https" || (base.scheme() == "http" && target.scheme() == "http");
    if kept {
        target.to_string().parse().ok()
    } else {
        None
    }
}

/// Whether two addresses are of one server, so that credentials may go along.
pub(super) fn same_server(a: &Uri, b: &Uri) -> bool {
    a.scheme() == b.scheme() && a.authority() == b.authority()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_encoded_and_credentials_taken_out() {
        let base = Base::parse("https://me:p%40ss@host:8443/a%20b?sig=1").unwrap();
        assert_eq!(
            base.of("x y/ü?#").unwrap(),
            "https://host:8443/a%20b/x%20y/%C3%BC%3F%23?sig=1"
        );
        assert_eq!(base.authorization.as_deref(), Some("Basic bWU6cEBzcw=="));
        assert_eq!(base.shown, "https://host:8443/a%20b");
    }

    #[test]
    fn a_redirection_never_leaves_tls() {
        let from: Uri = "https://host/a/b".parse().unwrap();
        assert_eq!(redirected(&from, "../c").unwrap(), "https://host/c");
        assert_eq!(redirected(&from, "http://host/c"), None);
        assert!(!same_server(&from, &"https://other/a".parse().unwrap()));
    }
}

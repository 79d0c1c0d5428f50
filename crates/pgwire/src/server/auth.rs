//! Who may be served: verifiers of passwords, one-time tokens, and the server's side of SCRAM.
//!
//! Source: RFC 5802, RFC 7677, and `auth-scram.c` for what PostgreSQL makes of them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use postgres_protocol::authentication::sasl::{SCRAM_SHA_256, SCRAM_SHA_256_PLUS};
use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind, Result};
use crate::secret::Secret;

/// What a password is checked by, in the form that PostgreSQL keeps it in:
/// `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramVerifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: [u8; 32],
    server_key: [u8; 32],
}

impl ScramVerifier {
    /// The verifier of a password, with a salt of its own.
    ///
    /// # Errors
    /// Never in practice; see [`FromStr`].
    pub fn from_password(password: &Secret) -> Result<Self> {
        postgres_protocol::password::scram_sha_256(password.expose().as_bytes()).parse()
    }
}

impl FromStr for ScramVerifier {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (parameters, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
            let (iterations, salt) = parameters.split_once(':')?;
            let (stored_key, server_key) = keys.split_once(':')?;
            let key = |text: &str| <[u8; 32]>::try_from(STANDARD.decode(text).ok()?).ok();
            Some(Self {
                iterations: iterations.parse().ok().filter(|count| *count > 0)?,
                salt: STANDARD.decode(salt).ok()?,
                stored_key: key(stored_key)?,
                server_key: key(server_key)?,
            })
        };
        parse().ok_or_else(|| Error::config("verifier", "it is not a SCRAM-SHA-256 verifier"))
    }
}

impl fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramVerifier")
    }
}

/// A token for one backup: a password that works for as many sessions as one `pg_basebackup` needs,
/// whatever the name of the user. It travels through SCRAM like any password.
#[derive(Debug, Clone)]
pub struct OneTimeToken(Arc<Token>);

#[derive(Debug)]
struct Token {
    verifier: ScramVerifier,
    sessions: AtomicU32,
}

impl OneTimeToken {
    /// A token that lets two sessions in: the one that copies and the one that streams WAL.
    ///
    /// # Errors
    /// As [`ScramVerifier::from_password`].
    pub fn new(token: &Secret) -> Result<Self> {
        Self::for_sessions(token, 2)
    }

    /// A token that lets this many sessions in.
    ///
    /// # Errors
    /// As [`ScramVerifier::from_password`].
    pub fn for_sessions(token: &Secret, sessions: u32) -> Result<Self> {
        Ok(Self(Arc::new(Token {
            verifier: ScramVerifier::from_password(token)?,
            sessions: AtomicU32::new(sessions),
        })))
    }

    /// How many sessions it still lets in.
    #[must_use]
    pub fn sessions_left(&self) -> u32 {
        self.0.sessions.load(Ordering::Acquire)
    }

    fn spend(&self) -> bool {
        let spend = |left: u32| left.checked_sub(1);
        self.0
            .sessions
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, spend)
            .is_ok()
    }
}

/// Who may be served.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Access {
    /// Whoever can connect: for sockets that only the right people can reach.
    Anybody,
    /// Users by name, each with a password.
    Users(BTreeMap<String, ScramVerifier>),
    /// Whoever has the token, while it lasts.
    Token(OneTimeToken),
}

impl Access {
    /// What to check this user's password by; for users that do not exist, something that no password
    /// passes and that looks the same from outside.
    fn verifier(&self, user: &str, secret: &[u8; 32]) -> (ScramVerifier, bool) {
        let found = match self {
            Self::Users(users) => users.get(user).cloned(),
            Self::Token(token) => Some(token.0.verifier.clone()),
            Self::Anybody => None,
        };
        match found {
            Some(verifier) => (verifier, true),
            None => {
                let salt = hmac(secret, &[user.as_bytes()]);
                let mock = ScramVerifier {
                    iterations: 4096,
                    salt: salt.get(..16).unwrap_or_default().to_vec(),
                    stored_key: [0; 32],
                    server_key: [0; 32],
                };
                (mock, false)
            }
        }
    }

    /// A login went through; whether it may go on.
    fn admit(&self) -> bool {
        match self {
            Self::Token(token) => token.spend(),
            _ => true,
        }
    }
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes keys of any length; were it not so, the result would match nothing.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return [0; 32];
    };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn failed() -> Error {
    Error::new(ErrorKind::Authentication, "login", "the password is wrong")
}

fn malformed(reason: &'static str) -> Error {
    Error::new(ErrorKind::Protocol, "SCRAM", reason)
}

pub(super) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::new(ErrorKind::Io, "random numbers", error.to_string()))?;
    Ok(bytes)
}

/// The server's side of one exchange. Holds the state between its two steps.
pub(crate) struct ScramServer<'a> {
    access: &'a Access,
    verifier: ScramVerifier,
    user_exists: bool,
    binding: Option<&'a [u8]>,
    /// What the client's final message must repeat.
    bound_input: Vec<u8>,
    nonce: String,
    first_messages: String,
}

impl<'a> ScramServer<'a> {
    /// The mechanisms to offer, each ended by a NUL, and one more at the end.
    pub(crate) fn mechanisms(binding: Option<&[u8]>) -> Vec<u8> {
        let mut list = Vec::new();
        if binding.is_some() {
            list.extend_from_slice(SCRAM_SHA_256_PLUS.as_bytes());
            list.push(0);
        }
        list.extend_from_slice(SCRAM_SHA_256.as_bytes());
        list.extend_from_slice(&[0, 0]);
        list
    }

    /// Takes the body of SASLInitialResponse; gives the answer to it.
    pub(crate) fn start(
        access: &'a Access,
        user: &str,
        secret: &[u8; 32],
        binding: Option<&'a [u8]>,
        body: &[u8],
        nonce: &[u8],
    ) -> Result<(Self, String)> {
        let end = body
            .iter()
            .position(|byte| *byte == 0)
            .ok_or_else(|| malformed("no mechanism"))?;
        let (mechanism, rest) = body.split_at(end);
        let message = rest
            .get(5..)
            .ok_or_else(|| malformed("the first message is missing"))?;
        let length = rest
            .get(1..5)
            .and_then(|bytes| bytes.try_into().ok())
            .map(i32::from_be_bytes);
        if length.and_then(|length| usize::try_from(length).ok()) != Some(message.len()) {
            return Err(malformed(
                "the first message has another length than it says",
            ));
        }
        let message =
            std::str::from_utf8(message).map_err(|_| malformed("a message is not UTF-8"))?;
        let (flag, rest) = message
            .split_once(',')
            .ok_or_else(|| malformed("no GS2 header"))?;
        let (identity, bare) = rest
            .split_once(',')
            .ok_or_else(|| malformed("no GS2 header"))?;
        let plus = match (mechanism, flag) {
            (mechanism, "p=tls-server-end-point") if mechanism == SCRAM_SHA_256_PLUS.as_bytes() => {
                true
            }
            (mechanism, "n") if mechanism == SCRAM_SHA_256.as_bytes() => false,
            // It could, and believes that we cannot: somebody hid our offer.
            (mechanism, "y") if mechanism == SCRAM_SHA_256.as_bytes() => {
                if binding.is_some() {
                    return Err(malformed(
                        "the client did not see our offer of channel binding",
                    ));
                }
                false
            }
            _ => {
                return Err(malformed(
                    "the channel binding does not belong to the mechanism",
                ));
            }
        };
        if plus && binding.is_none() {
            return Err(malformed("channel binding was not offered"));
        }
        if !identity.is_empty() {
            return Err(malformed("acting for somebody else is not supported"));
        }
        let mut attributes = bare.split(',');
        let (Some(name), Some(client_nonce)) = (attributes.next(), attributes.next()) else {
            return Err(malformed("the first message breaks off"));
        };
        let client_nonce = client_nonce
            .strip_prefix("r=")
            .filter(|nonce| !nonce.is_empty());
        let (true, Some(client_nonce)) = (name.starts_with("n="), client_nonce) else {
            return Err(malformed("the first message has no name or no nonce"));
        };
        let (verifier, user_exists) = access.verifier(user, secret);
        let nonce = format!("{client_nonce}{}", STANDARD.encode(nonce));
        let salt = STANDARD.encode(&verifier.salt);
        let answer = format!("r={nonce},s={salt},i={}", verifier.iterations);
        let mut bound_input = format!("{flag},,").into_bytes();
        if plus {
            bound_input.extend_from_slice(binding.unwrap_or_default());
        }
        let server = Self {
            access,
            verifier,
            user_exists,
            binding,
            bound_input,
            nonce,
            first_messages: format!("{bare},{answer}"),
        };
        Ok((server, answer))
    }

    /// Takes the body of SASLResponse; gives the last message if the client knows the password.
    pub(crate) fn finish(self, body: &[u8]) -> Result<String> {
        let message = std::str::from_utf8(body).map_err(|_| malformed("a message is not UTF-8"))?;
        let (without_proof, proof) = message
            .rsplit_once(",p=")
            .ok_or_else(|| malformed("there is no proof"))?;
        let mut attributes = without_proof.split(',');
        let bound = attributes.next().and_then(|text| text.strip_prefix("c="));
        let nonce = attributes.next().and_then(|text| text.strip_prefix("r="));
        let bound = bound.and_then(|text| STANDARD.decode(text).ok());
        if bound.as_deref() != Some(self.bound_input.as_slice()) {
            let reason = if self.binding.is_some() {
                "channel binding does not match"
            } else {
                "the GS2 header changed"
            };
            return Err(malformed(reason));
        }
        if nonce != Some(self.nonce.as_str()) {
            return Err(malformed("the nonce changed"));
        }
        let proof = STANDARD
            .decode(proof)
            .ok()
            .and_then(|proof| <[u8; 32]>::try_from(proof).ok());
        let mut client_key = proof.ok_or_else(|| malformed("the proof is malformed"))?;
        let signed: [&[u8]; 3] = [
            self.first_messages.as_bytes(),
            b",",
            without_proof.as_bytes(),
        ];
        let signature = hmac(&self.verifier.stored_key, &signed);
        for (key, byte) in client_key.iter_mut().zip(signature) {
            *key ^= byte;
        }
        let computed: [u8; 32] = Sha256::digest(client_key).into();
        // Every byte is looked at, whichever differs first.
        let differences = computed
            .iter()
            .zip(self.verifier.stored_key)
            .fold(0, |sum, (a, b)| sum | (a ^ b));
        if differences != 0 || !self.user_exists || !self.access.admit() {
            return Err(failed());
        }
        Ok(format!(
            "v={}",
            STANDARD.encode(hmac(&self.verifier.server_key, &signed))
        ))
    }
}

#[cfg(test)]
mod tests {
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

    use super::*;

    fn initial(mechanism: &str, message: &[u8]) -> Vec<u8> {
        let mut body = mechanism.as_bytes().to_vec();
        body.push(0);
        body.extend_from_slice(&i32::try_from(message.len()).unwrap().to_be_bytes());
        body.extend_from_slice(message);
        body
    }

    fn log_in(access: &Access, password: &str, binding: Option<&[u8]>) -> Result<()> {
        let (mechanism, client) = match binding {
            Some(data) => (
                SCRAM_SHA_256_PLUS,
                ChannelBinding::tls_server_end_point(data.to_vec()),
            ),
            None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        };
        let mut client = ScramSha256::new(password.as_bytes(), client);
        let body = initial(mechanism, client.message());
        let (server, answer) =
            ScramServer::start(access, "me", &[0; 32], Some(b"cert"), &body, b"0123")?;
        client.update(answer.as_bytes()).unwrap();
        let last = server.finish(client.message())?;
        client.finish(last.as_bytes()).unwrap();
        Ok(())
    }

    #[test]
    fn the_right_password_is_let_in_and_the_server_proves_itself() {
        let verifier = ScramVerifier::from_password(&Secret::new("right")).unwrap();
        let access = Access::Users(BTreeMap::from([("me".to_owned(), verifier)]));
        log_in(&access, "right", None).unwrap();
        log_in(&access, "right", Some(b"cert")).unwrap();
        assert_eq!(
            log_in(&access, "wrong", None).unwrap_err().kind(),
            ErrorKind::Authentication
        );
        assert!(log_in(&access, "right", Some(b"another cert")).is_err());
        let nobody = Access::Users(BTreeMap::new());
        assert_eq!(
            log_in(&nobody, "right", None).unwrap_err().kind(),
            ErrorKind::Authentication
        );
    }

    #[test]
    fn a_token_is_spent_by_logins_that_succeed() {
        let token = OneTimeToken::new(&Secret::new("t")).unwrap();
        let access = Access::Token(token.clone());
        assert!(log_in(&access, "x", None).is_err());
        assert_eq!(token.sessions_left(), 2);
        log_in(&access, "t", None).unwrap();
        log_in(&access, "t", None).unwrap();
        assert!(log_in(&access, "t", None).is_err());
    }

    #[test]
    fn a_client_that_did_not_see_our_offer_of_channel_binding_is_refused() {
        let access = Access::Users(BTreeMap::new());
        let body = initial(SCRAM_SHA_256, b"y,,n=,r=abc");
        assert!(ScramServer::start(&access, "me", &[0; 32], Some(b"cert"), &body, b"0").is_err());
        assert!(ScramServer::start(&access, "me", &[0; 32], None, &body, b"0").is_ok());
    }
}

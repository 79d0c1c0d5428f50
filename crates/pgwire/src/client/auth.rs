//! Proving who we are: trust, peer and certificates (nothing to send), cleartext, MD5, SCRAM.
//!
//! Source: "Start-up" and "SASL Authentication" in the protocol chapter; which answers are acceptable
//! follows `require_auth` and `channel_binding` as libpq reads them.

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;

use crate::conninfo::{AuthMethod, ChannelBindingMode, Config, Host};
use crate::error::{Error, ErrorKind, Result};
use crate::io::Framed;
use crate::secret::Secret;

/// Where the exchange stands.
enum State {
    Start,
    Scram(Box<ScramSha256>, Bound),
    /// SCRAM is through, also for us: the server knows the password.
    ScramDone(Bound),
    /// A password was sent in clear or hashed; only the server can tell.
    Sent,
}

/// Whether the login is tied to the TLS connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bound {
    Yes,
    No,
}

/// One login.
pub(super) struct Login<'a> {
    config: &'a Config,
    host: &'a Host,
    /// What ties a login to the TLS connection, if there is one and its certificate is of use.
    binding: Option<&'a [u8]>,
    encrypted: bool,
    state: State,
}

fn refused(reason: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Authentication, "authentication", reason)
}

impl<'a> Login<'a> {
    pub(super) fn new(
        config: &'a Config,
        host: &'a Host,
        binding: Option<&'a [u8]>,
        encrypted: bool,
    ) -> Self {
        Self {
            config,
            host,
            binding,
            encrypted,
            state: State::Start,
        }
    }

    /// Answers one authentication message. Returns whether the server is satisfied, and so are we.
    pub(super) async fn answer(&mut self, message: Message, framed: &mut Framed) -> Result<bool> {
        match message {
            Message::AuthenticationOk => self.accept_ok().map(|()| true),
            Message::AuthenticationCleartextPassword => {
                self.start(AuthMethod::Password)?;
                let password = self.password()?;
                frontend::password_message(password.expose().as_bytes(), framed.output())
                    .map_err(|error| refused("the password cannot be sent").caused_by_io(error))?;
                framed.flush().await.map(|()| false)
            }
            Message::AuthenticationMd5Password(body) => {
                self.start(AuthMethod::Md5)?;
                let password = self.password()?;
                let user = self.config.user.as_bytes();
                let hash = md5_hash(user, password.expose().as_bytes(), body.salt());
                frontend::password_message(hash.as_bytes(), framed.output())
                    .map_err(|error| refused("the password cannot be sent").caused_by_io(error))?;
                framed.flush().await.map(|()| false)
            }
            Message::AuthenticationSasl(body) => {
                self.start_scram(&body, framed)?;
                framed.flush().await.map(|()| false)
            }
            Message::AuthenticationSaslContinue(body) => {
                let State::Scram(scram, _) = &mut self.state else {
                    return Err(Error::protocol("SASL goes on that was not started"));
                };
                scram.update(body.data()).map_err(|error| {
                    refused("the server's SCRAM message is not valid").caused_by_io(error)
                })?;
                frontend::sasl_response(scram.message(), framed.output()).map_err(|error| {
                    refused("the SCRAM message cannot be sent").caused_by_io(error)
                })?;
                framed.flush().await.map(|()| false)
            }
            Message::AuthenticationSaslFinal(body) => {
                let State::Scram(scram, bound) = &mut self.state else {
                    return Err(Error::protocol("SASL ends that was not started"));
                };
                let bound = *bound;
                scram.finish(body.data()).map_err(|error| {
                    refused("the server did not prove that it knows the password")
                        .caused_by_io(error)
                })?;
                self.state = State::ScramDone(bound);
                Ok(false)
            }
            Message::AuthenticationGss | Message::AuthenticationKerberosV5 => Err(
                Error::unsupported("authentication", "the server asks for GSSAPI"),
            ),
            Message::AuthenticationSspi => Err(Error::unsupported(
                "authentication",
                "the server asks for SSPI",
            )),
            _ => Err(Error::unsupported(
                "authentication",
                "the server asks for an unknown method",
            )),
        }
    }

    /// A method may begin if it is allowed, and only once.
    fn start(&mut self, method: AuthMethod) -> Result<()> {
        if !matches!(self.state, State::Start) {
            return Err(Error::protocol("a second authentication request"));
        }
        if !self.config.auth.allows(method) {
            return Err(refused(format!(
                "the server asks for {method}, which require_auth forbids"
            )));
        }
        if method != AuthMethod::ScramSha256
            && self.config.channel_binding == ChannelBindingMode::Require
        {
            return Err(refused(
                "channel binding is required, but the server asks for a method without",
            ));
        }
        self.state = State::Sent;
        Ok(())
    }

    fn password(&self) -> Result<Secret> {
        self.config
            .password_for(self.host)?
            .ok_or_else(|| refused("the server asks for a password and there is none"))
    }

    fn start_scram(&mut self, body: &AuthenticationSaslBody, framed: &mut Framed) -> Result<()> {
        self.start(AuthMethod::ScramSha256)?;
        let (mut plain, mut plus) = (false, false);
        let mut mechanisms = body.mechanisms();
        while let Some(name) = fallible_next(&mut mechanisms)? {
            plain |= name == SCRAM_SHA_256;
            plus |= name == SCRAM_SHA_256_PLUS;
        }
        if plus && !self.encrypted {
            return Err(Error::protocol("channel binding is offered without TLS"));
        }
        let wanted = self.config.channel_binding;
        let (mechanism, binding, bound) = match self.binding {
            Some(data) if plus && wanted != ChannelBindingMode::Disable => (
                SCRAM_SHA_256_PLUS,
                ChannelBinding::tls_server_end_point(data.to_vec()),
                Bound::Yes,
            ),
            _ if wanted == ChannelBindingMode::Require => {
                return Err(refused(
                    "channel binding is required, but not possible here",
                ));
            }
            // We could, and say so: a server that can will notice that somebody hid it from us.
            Some(_) if plain && wanted != ChannelBindingMode::Disable => {
                (SCRAM_SHA_256, ChannelBinding::unrequested(), Bound::No)
            }
            _ if plain => (SCRAM_SHA_256, ChannelBinding::unsupported(), Bound::No),
            _ => {
                return Err(Error::unsupported(
                    "authentication",
                    "the server offers no SASL mechanism that is known",
                ));
            }
        };
        let password = self.password()?;
        let scram = ScramSha256::new(password.expose().as_bytes(), binding);
        frontend::sasl_initial_response(mechanism, scram.message(), framed.output())
            .map_err(|error| refused("the SCRAM message cannot be sent").caused_by_io(error))?;
        self.state = State::Scram(Box::new(scram), bound);
        Ok(())
    }

    fn accept_ok(&self) -> Result<()> {
        if self.config.channel_binding == ChannelBindingMode::Require
            && !matches!(self.state, State::ScramDone(Bound::Yes))
        {
            return Err(refused(
                "channel binding is required, but the server let us in without",
            ));
        }
        match self.state {
            // A certificate that we sent proves nothing about the server: to log in by it alone is `none`.
            State::Start if !self.config.auth.allows(AuthMethod::None) => Err(refused(
                "the server let us in without the authentication that require_auth wants",
            )),
            State::Scram(..) => Err(refused(
                "the server let us in without proving that it knows the password",
            )),
            _ => Ok(()),
        }
    }
}

fn fallible_next<'a>(
    mechanisms: &mut postgres_protocol::message::backend::SaslMechanisms<'a>,
) -> Result<Option<&'a str>> {
    use fallible_iterator::FallibleIterator;
    mechanisms.next().map_err(|error| {
        Error::protocol("the list of SASL mechanisms is broken").caused_by_io(error)
    })
}

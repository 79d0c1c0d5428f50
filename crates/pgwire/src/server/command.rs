//! The replication commands that are understood, and nothing else.
//!
//! Source: `repl_gram.y` and `repl_scanner.l` of 13 to 18. Keywords are case-insensitive; both forms of
//! options are taken, whichever version we say we are.

use neon_pg_layout::{Lsn, TimelineId};

use crate::server::reply::Refusal;
use crate::server::source::BackupRequest;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    IdentifySystem,
    Show(String),
    TimelineHistory(TimelineId),
    CreateSlot(String),
    ReadSlot,
    BaseBackup(BackupRequest),
    StartReplication {
        slot: Option<String>,
        start: Lsn,
        timeline: Option<TimelineId>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// A word, in upper case, or a number.
    Word(String),
    /// A quoted identifier.
    Name(String),
    Literal(String),
    Sign(char),
}

type Parsed<T> = Result<T, Refusal>;

fn tokens(text: &str) -> Parsed<Vec<Token>> {
    let mut found = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            c if c.is_ascii_whitespace() => {}
            '(' | ')' | ',' | ';' => found.push(Token::Sign(c)),
            '\'' | '"' => {
                let mut value = String::new();
                loop {
                    match rest.next() {
                        Some(end) if end == c && rest.peek() == Some(&c) => {
                            rest.next();
                            value.push(c);
                        }
                        Some(end) if end == c => break,
                        Some(other) => value.push(other),
                        None => return Err(Refusal::syntax("a quote is not closed")),
                    }
                }
                found.push(if c == '"' {
                    Token::Name(value)
                } else {
                    Token::Literal(value)
                });
            }
            c if c.is_ascii_alphanumeric() || c == '_' => {
                let mut word = String::from(c.to_ascii_uppercase());
                while let Some(c) =
                    rest.next_if(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '/' | '.'))
                {
                    word.push(c.to_ascii_uppercase());
                }
                found.push(Token::Word(word));
            }
            _ => return Err(Refusal::syntax("syntax error")),
        }
    }
    Ok(found)
}

struct Parser {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
}

impl Parser {
    fn next(&mut self) -> Parsed<Token> {
        self.tokens
            .next()
            .ok_or_else(|| Refusal::syntax("the command breaks off"))
    }

    fn word(&mut self) -> Parsed<String> {
        match self.next()? {
            Token::Word(word) => Ok(word),
            _ => Err(Refusal::syntax("syntax error")),
        }
    }

    fn name(&mut self) -> Parsed<String> {
        match self.next()? {
            Token::Name(name) => Ok(name),
            Token::Word(word) => Ok(word.to_ascii_lowercase()),
            _ => Err(Refusal::syntax("syntax error")),
        }
    }

    fn literal(&mut self) -> Parsed<String> {
        match self.next()? {
            Token::Literal(text) => Ok(text),
            _ => Err(Refusal::syntax("a string is expected")),
        }
    }

    fn eat(&mut self, wanted: &Token) -> bool {
        self.tokens.next_if_eq(wanted).is_some()
    }

    fn eat_word(&mut self, wanted: &str) -> bool {
        self.eat(&Token::Word(wanted.to_owned()))
    }

    fn timeline(&mut self) -> Parsed<TimelineId> {
        let number = self
            .word()?
            .parse()
            .ok()
            .and_then(|number| TimelineId::new(number).ok());
        number.ok_or_else(|| Refusal::syntax("that is not a timeline"))
    }

    /// A boolean option's value; without one it is true.
    fn boolean(&mut self) -> Parsed<bool> {
        match self.tokens.peek() {
            Some(Token::Word(_) | Token::Literal(_)) => match self.next()? {
                Token::Word(word) | Token::Literal(word) => {
                    match word.to_ascii_lowercase().as_str() {
                        "1" | "true" | "on" | "yes" => Ok(true),
                        "0" | "false" | "off" | "no" => Ok(false),
                        _ => Err(Refusal::syntax("that is not a boolean")),
                    }
                }
                _ => Err(Refusal::syntax("syntax error")),
            },
            _ => Ok(true),
        }
    }
}

impl Command {
    pub(crate) fn parse(text: &str) -> Parsed<Self> {
        let mut parser = Parser {
            tokens: tokens(text)?.into_iter().peekable(),
        };
        let command = match parser.word()?.as_str() {
            "IDENTIFY_SYSTEM" => Self::IdentifySystem,
            "SHOW" => Self::Show(parser.name()?),
            "TIMELINE_HISTORY" => Self::TimelineHistory(parser.timeline()?),
            "CREATE_REPLICATION_SLOT" => create_slot(&mut parser)?,
            "READ_REPLICATION_SLOT" => {
                parser.name()?;
                Self::ReadSlot
            }
            "BASE_BACKUP" => Self::BaseBackup(base_backup(&mut parser)?),
            "START_REPLICATION" => start_replication(&mut parser)?,
            _ => {
                return Err(Refusal::unsupported(
                    "this server answers the commands of a base backup and of WAL streaming only",
                ));
            }
        };
        parser.eat(&Token::Sign(';'));
        match parser.tokens.next() {
            None => Ok(command),
            Some(_) => Err(Refusal::syntax("syntax error at the end of the command")),
        }
    }
}

fn create_slot(parser: &mut Parser) -> Parsed<Command> {
    let name = parser.name()?;
    if !parser.eat_word("TEMPORARY") {
        return Err(Refusal::unsupported(
            "this server has temporary replication slots only",
        ));
    }
    if !parser.eat_word("PHYSICAL") {
        return Err(Refusal::unsupported(
            "this server has physical replication slots only",
        ));
    }
    if parser.eat(&Token::Sign('(')) {
        while !parser.eat(&Token::Sign(')')) {
            if !matches!(parser.next()?, Token::Word(word) if word == "RESERVE_WAL") {
                return Err(Refusal::syntax("unrecognized option of a replication slot"));
            }
            parser.boolean()?;
            parser.eat(&Token::Sign(','));
        }
    } else {
        parser.eat_word("RESERVE_WAL");
    }
    Ok(Command::CreateSlot(name))
}

fn start_replication(parser: &mut Parser) -> Parsed<Command> {
    let slot = if parser.eat_word("SLOT") {
        Some(parser.name()?)
    } else {
        None
    };
    if parser.eat_word("LOGICAL") {
        return Err(Refusal::unsupported(
            "this server streams physical WAL only",
        ));
    }
    parser.eat_word("PHYSICAL");
    let start = parser
        .word()?
        .parse()
        .map_err(|_| Refusal::syntax("that is not a position"))?;
    let timeline = if parser.eat_word("TIMELINE") {
        Some(parser.timeline()?)
    } else {
        None
    };
    Ok(Command::StartReplication {
        slot,
        start,
        timeline,
    })
}

fn base_backup(parser: &mut Parser) -> Parsed<BackupRequest> {
    let mut request = BackupRequest {
        label: "base backup".to_owned(),
        ..BackupRequest::default()
    };
    let mut seen = Vec::new();
    let generic = parser.eat(&Token::Sign('('));
    loop {
        let name = match parser.tokens.next() {
            None if !generic => break,
            Some(Token::Sign(')')) if generic => break,
            Some(Token::Sign(';')) if !generic => break,
            Some(Token::Word(name)) => name,
            _ => {
                return Err(Refusal::syntax(
                    "syntax error in the options of BASE_BACKUP",
                ));
            }
        };
        if seen.contains(&name) {
            return Err(Refusal::syntax(format!(
                "duplicate option \"{}\"",
                name.to_lowercase()
            )));
        }
        option(parser, &mut request, &name, generic)?;
        seen.push(name);
        if generic {
            parser.eat(&Token::Sign(','));
        }
    }
    Ok(request)
}

fn option(
    parser: &mut Parser,
    request: &mut BackupRequest,
    name: &str,
    generic: bool,
) -> Parsed<()> {
    let flag = |parser: &mut Parser| if generic { parser.boolean() } else { Ok(true) };
    match name {
        "LABEL" => request.label = parser.literal()?,
        "WAL" => request.wal = flag(parser)?,
        "TABLESPACE_MAP" => request.tablespace_map = flag(parser)?,
        "MANIFEST" => match parser.literal()?.as_str() {
            "yes" | "force-encode" => request.manifest = true,
            "no" => request.manifest = false,
            _ => return Err(Refusal::syntax("unrecognized manifest option")),
        },
        // A snapshot is as it is: how it is to be made means nothing any more. Its manifest has the
        // checksums it has.
        "PROGRESS" | "FAST" | "NOWAIT" | "NOVERIFY_CHECKSUMS" | "WAIT" | "VERIFY_CHECKSUMS" => {
            flag(parser)?;
        }
        "CHECKPOINT" | "MANIFEST_CHECKSUMS" | "COMPRESSION_DETAIL" => {
            parser.literal()?;
        }
        "MAX_RATE" => {
            let rate = parser.word()?.parse::<u32>().ok();
            if !rate.is_some_and(|rate| (32..=1_048_576).contains(&rate)) {
                return Err(Refusal::new(
                    "22023",
                    "MAX_RATE is outside of 32 to 1048576",
                ));
            }
        }
        "TARGET" if parser.literal()? != "client" => {
            return Err(Refusal::unsupported(
                "this server sends backups to the client only",
            ));
        }
        "COMPRESSION" if parser.literal()? != "none" => {
            return Err(Refusal::unsupported(
                "this server does not compress; let the client do it",
            ));
        }
        "TARGET" | "COMPRESSION" => {}
        "INCREMENTAL" => {
            if flag(parser)? {
                return Err(Refusal::unsupported(
                    "this server makes no incremental backups",
                ));
            }
        }
        _ => {
            let name = name.to_lowercase();
            return Err(Refusal::syntax(format!(
                "unrecognized base backup option: \"{name}\""
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stock clients were seen to send (reference: a logging proxy).
    #[test]
    fn what_stock_clients_send_is_understood() {
        let old = "BASE_BACKUP LABEL 'pg_basebackup base backup' PROGRESS WAL FAST NOWAIT  TABLESPACE_MAP  MANIFEST 'yes' ";
        let new = "BASE_BACKUP ( LABEL 'pg_basebackup base backup',  PROGRESS,  WAL,  CHECKPOINT 'fast',  WAIT 0,  TABLESPACE_MAP,  MANIFEST 'yes',  TARGET 'client')";
        let expected = BackupRequest {
            label: "pg_basebackup base backup".to_owned(),
            tablespace_map: true,
            manifest: true,
            wal: true,
        };
        for text in [old, new] {
            assert_eq!(
                Command::parse(text),
                Ok(Command::BaseBackup(expected.clone())),
                "{text}"
            );
        }
        for text in [
            r#"CREATE_REPLICATION_SLOT "pg_basebackup_0" TEMPORARY PHYSICAL RESERVE_WAL"#,
            r#"CREATE_REPLICATION_SLOT "pg_basebackup_0" TEMPORARY PHYSICAL ( RESERVE_WAL)"#,
        ] {
            assert_eq!(
                Command::parse(text),
                Ok(Command::CreateSlot("pg_basebackup_0".to_owned()))
            );
        }
        assert_eq!(
            Command::parse(r#"START_REPLICATION SLOT "s" 0/3000000 TIMELINE 1"#),
            Ok(Command::StartReplication {
                slot: Some("s".to_owned()),
                start: Lsn(0x300_0000),
                timeline: Some(TimelineId::FIRST),
            })
        );
    }

    #[test]
    fn everything_else_is_refused() {
        for (text, code) in [
            ("SELECT 1", "0A000"),
            ("BASE_BACKUP (LABEL 'a', LABEL 'b')", "42601"),
            ("BASE_BACKUP (NONSENSE)", "42601"),
            ("BASE_BACKUP (INCREMENTAL)", "0A000"),
            ("BASE_BACKUP (COMPRESSION 'gzip')", "0A000"),
            ("BASE_BACKUP (TARGET 'server', TARGET_DETAIL '/')", "0A000"),
            ("BASE_BACKUP LABEL 'a", "42601"),
            ("IDENTIFY_SYSTEM IDENTIFY_SYSTEM", "42601"),
            ("START_REPLICATION SLOT s LOGICAL 0/0", "0A000"),
            (r#"CREATE_REPLICATION_SLOT "s" PHYSICAL"#, "0A000"),
            (r#"DROP_REPLICATION_SLOT "s""#, "0A000"),
            ("TIMELINE_HISTORY 0", "42601"),
            ("", "42601"),
        ] {
            assert_eq!(Command::parse(text).unwrap_err().code, code, "{text}");
        }
    }
}

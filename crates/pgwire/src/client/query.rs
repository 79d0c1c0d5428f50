//! The simple query protocol: one text, any number of results, all values as text.

use std::collections::VecDeque;

use bytes::Bytes;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::Message;

use crate::client::{Client, Exchange, unexpected};
use crate::error::{Error, ErrorKind, Result};
use crate::io::Frame;

/// A column of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    name: String,
    type_oid: u32,
}

impl Column {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The object id of its type.
    #[must_use]
    pub fn type_oid(&self) -> u32 {
        self.type_oid
    }
}

/// A row of a result: texts, or nothing for NULL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row(Vec<Option<Bytes>>);

impl Row {
    /// The value as text; `None` for NULL, for a column that is not there, and for what is not UTF-8.
    #[must_use]
    pub fn get(&self, column: usize) -> Option<&str> {
        std::str::from_utf8(self.bytes(column)?).ok()
    }

    /// The value as the server sent it.
    #[must_use]
    pub fn bytes(&self, column: usize) -> Option<&Bytes> {
        self.0.get(column)?.as_ref()
    }

    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What one statement gave.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResultSet {
    columns: Vec<Column>,
    rows: Vec<Row>,
    tag: String,
}

impl ResultSet {
    /// A result whose columns do not matter.
    pub(super) fn from_rows(rows: Vec<Row>) -> Self {
        Self {
            rows,
            ..Self::default()
        }
    }

    /// The columns; none for a statement without a result.
    #[must_use]
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The rows.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// What the server calls what it did, for example `SELECT 1`.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// A value as text; `None` for NULL and outside the result.
    #[must_use]
    pub fn value(&self, row: usize, column: usize) -> Option<&str> {
        self.rows.get(row)?.get(column)
    }

    /// A value by the name of its column.
    #[must_use]
    pub fn named(&self, row: usize, column: &str) -> Option<&str> {
        let column = self.columns.iter().position(|found| found.name == column)?;
        self.value(row, column)
    }
}

/// What comes out of a [`QueryStream`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryEvent {
    /// A result begins; these are its columns.
    Columns(Vec<Column>),
    /// A row of it.
    Row(Row),
    /// A statement is done; this is its tag, empty for an empty statement.
    Done(String),
}

/// The results of a query as they arrive. Reading stops when nobody asks for more.
///
/// Dropping it before its end closes the connection; the server goes on with the statement until it
/// notices, unless it is [cancelled](crate::CancelToken).
pub struct QueryStream<'a> {
    /// `None` after the end.
    exchange: Option<Exchange<'a>>,
    failure: Option<Error>,
}

impl std::fmt::Debug for QueryStream<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryStream")
            .field("done", &self.exchange.is_none())
            .finish()
    }
}

const SUBJECT: &str = "query";

impl Client {
    /// Runs SQL, possibly several statements, and collects what they give.
    ///
    /// Values from outside go through [`quote_literal`](crate::quote_literal) and
    /// [`quote_identifier`](crate::quote_identifier). Results beyond
    /// [`Limits::result`](crate::Limits::result) are an error; stream those.
    ///
    /// Dropping the future closes the connection; the server goes on with the statement until it
    /// notices.
    ///
    /// # Errors
    /// What the server says, after which the session goes on; anything else closes it.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<ResultSet>> {
        let limit = self.peer.config.limits.result;
        let mut stream = self.query(sql).await?;
        let (mut results, mut current) = (Vec::new(), ResultSet::default());
        let mut size = 0_usize;
        while let Some(event) = stream.next().await? {
            size = size.saturating_add(64);
            match event {
                QueryEvent::Columns(columns) => current.columns = columns,
                QueryEvent::Row(row) => {
                    let values = row.0.iter().flatten().map(Bytes::len).sum::<usize>();
                    size = size.saturating_add(values).saturating_add(row.len() * 32);
                    current.rows.push(row);
                }
                QueryEvent::Done(tag) => {
                    current.tag = tag;
                    results.push(std::mem::take(&mut current));
                }
            }
            if size > limit {
                let reason = format!("the result is larger than the limit of {limit} bytes");
                return Err(Error::new(ErrorKind::Protocol, SUBJECT, reason));
            }
        }
        Ok(results)
    }

    /// Runs SQL and hands out its results as they arrive.
    ///
    /// Dropping the future or the stream closes the connection.
    ///
    /// # Errors
    /// When the query cannot be sent; what the server says comes out of the stream.
    pub async fn query(&mut self, sql: &str) -> Result<QueryStream<'_>> {
        let mut exchange = self.exchange()?;
        exchange.send_query(sql).await?;
        Ok(QueryStream {
            exchange: Some(exchange),
            failure: None,
        })
    }

    /// Runs a command of the replication grammar and collects what it gives.
    pub(super) async fn command(
        &mut self,
        subject: &'static str,
        text: &str,
    ) -> Result<VecDeque<ResultSet>> {
        match self.simple_query(text).await {
            Ok(results) => Ok(results.into()),
            Err(error) if error.kind() == ErrorKind::Server => {
                Err(Error::new(ErrorKind::Server, subject, "the command failed").caused_by(error))
            }
            Err(error) => Err(error),
        }
    }

    /// The one result of a command that has one.
    pub(super) async fn command_result(
        &mut self,
        subject: &'static str,
        text: &str,
    ) -> Result<ResultSet> {
        let found = self.command(subject, text).await?.pop_front();
        found.ok_or_else(|| Error::new(ErrorKind::Protocol, subject, "the server sent no result"))
    }
}

impl QueryStream<'_> {
    /// The next event, `None` at the end. Dropping this future loses nothing.
    ///
    /// # Errors
    /// What the server says, once everything before it was handed out; the session goes on. Anything
    /// else closes it.
    pub async fn next(&mut self) -> Result<Option<QueryEvent>> {
        let Some(exchange) = &mut self.exchange else {
            return Ok(None);
        };
        loop {
            let frame = match exchange.receive().await {
                Ok(frame) => frame,
                Err(error) => {
                    self.exchange = None;
                    // A server that ends the session says so and hangs up.
                    return Err(self.failure.take().unwrap_or(error));
                }
            };
            match frame.tag() {
                b'T' => return Ok(Some(QueryEvent::Columns(columns(frame)?))),
                b'D' => return Ok(Some(QueryEvent::Row(row(frame)?))),
                b'C' => return Ok(Some(QueryEvent::Done(command_tag(frame)?))),
                b'I' => return Ok(Some(QueryEvent::Done(String::new()))),
                b'E' => {
                    let error = crate::server_error::ServerError::parse(&frame.body());
                    self.failure = Some(Error::from_server(SUBJECT, error));
                }
                b'Z' => {
                    if let Some(exchange) = self.exchange.take() {
                        exchange.finish();
                    }
                    return match self.failure.take() {
                        Some(error) => Err(error),
                        None => Ok(None),
                    };
                }
                b'G' | b'H' | b'W' => {
                    self.exchange = None;
                    return Err(Error::unsupported(
                        SUBJECT,
                        "COPY to or from the client is not supported",
                    ));
                }
                _ => {
                    self.exchange = None;
                    return Err(unexpected(SUBJECT, &frame));
                }
            }
        }
    }
}

pub(super) fn columns(frame: Frame) -> Result<Vec<Column>> {
    let broken = |error| Error::protocol("the description of a row is broken").caused_by_io(error);
    let Message::RowDescription(body) = frame.decode()? else {
        return Err(Error::protocol("the description of a row is none"));
    };
    let mut fields = body.fields();
    let mut columns = Vec::new();
    while let Some(field) = fields.next().map_err(broken)? {
        columns.push(Column {
            name: field.name().to_owned(),
            type_oid: field.type_oid(),
        });
    }
    Ok(columns)
}

pub(super) fn row(frame: Frame) -> Result<Row> {
    let broken = |error| Error::protocol("a row is broken").caused_by_io(error);
    let Message::DataRow(body) = frame.decode()? else {
        return Err(Error::protocol("a row is none"));
    };
    let buffer = body.buffer_bytes().clone();
    let mut ranges = body.ranges();
    let mut values = Vec::new();
    while let Some(range) = ranges.next().map_err(broken)? {
        match range {
            None => values.push(None),
            Some(range) if range.start <= range.end && range.end <= buffer.len() => {
                values.push(Some(buffer.slice(range)));
            }
            Some(_) => return Err(Error::protocol("a value of a row lies outside of it")),
        }
    }
    Ok(Row(values))
}

pub(super) fn command_tag(frame: Frame) -> Result<String> {
    let Message::CommandComplete(body) = frame.decode()? else {
        return Err(Error::protocol("the end of a command is none"));
    };
    match body.tag() {
        Ok(tag) => Ok(tag.to_owned()),
        Err(error) => Err(Error::protocol("the tag of a command is not UTF-8").caused_by_io(error)),
    }
}

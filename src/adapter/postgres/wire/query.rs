//! Queries by the extended protocol, whose rows come in the binary format.

use std::convert::Infallible;

use bytes::{Buf, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::IsNull;
use postgres_protocol::message::backend::{ErrorResponseBody, Message};
use postgres_protocol::message::frontend::{self, BindError};

use super::parameter::Parameter;
use super::types::Forgotten;
use super::{HEADER_BYTES, Refused, Reply, Session, header, unexpected};
use crate::domain::json::Column;

/// After so many rows, a loop over them yields to other tasks: rows that have arrived are read without an
/// await that would yield.
const ROWS_A_TURN: usize = 256;

const BINARY: i16 = 1;

/// A column of a statement.
#[derive(Clone, Debug)]
pub(in super::super) struct Described {
    pub(in super::super) column: Column,
    pub(in super::super) oid: u32,
}

/// How to run the statement that was described last.
pub(in super::super) struct Execution<'e> {
    pub(in super::super) parameters: &'e [Parameter],
    /// The longest row, in bytes on the wire.
    pub(in super::super) longest: usize,
    /// SQL that is sent at once and runs after the statement, whether or not that succeeds.
    pub(in super::super) then: Option<&'static str>,
}

/// Why the rows were not read to their end.
pub(in super::super) enum Stopped<E> {
    /// The server refused, or the connection was lost.
    Sql(sqlx::Error),
    /// A row is longer than allowed.
    TooLong,
    /// The reader of the rows wants no more.
    Reader(E),
}

impl<E> From<sqlx::Error> for Stopped<E> {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

/// A row where it lies in the session's buffer.
#[derive(Clone, Copy)]
pub(in super::super) struct Row<'r> {
    body: &'r [u8],
    fields: &'r [Field],
}

/// Where the bytes of a column are in a row.
#[derive(Clone, Copy)]
struct Field {
    start: u32,
    /// `None` for NULL.
    length: Option<u32>,
}

impl<'r> Row<'r> {
    /// A column's bytes in the binary format; `None` for NULL.
    pub(in super::super) fn value(self, index: usize) -> Option<&'r [u8]> {
        let Field { start, length } = *self.fields.get(index)?;
        let start = start as usize;
        self.body.get(start..start + length? as usize)
    }
}

impl Session {
    /// Prepares a statement, and returns its columns: none if it returns no rows.
    pub(in super::super) async fn describe(
        &mut self,
        sql: &str,
        parameters: &[Parameter],
    ) -> Result<Vec<Described>, sqlx::Error> {
        loop {
            let (names, oids) = self.prepare(sql, parameters).await?;
            let (types, Forgotten(is_forgotten)) = self.types(&oids).await?;
            if !is_forgotten {
                let columns = names.into_iter().zip(types).zip(oids);
                let described = |((name, ty), oid)| Described { column: Column { name, ty }, oid };
                return Ok(columns.map(described).collect());
            }
        }
    }

    /// Runs a statement that returns no rows.
    pub(in super::super) async fn execute(
        &mut self,
        sql: &str,
        parameters: &[Parameter],
    ) -> Result<(), sqlx::Error> {
        self.prepare(sql, parameters).await?;
        let execution = Execution { parameters, longest: 0, then: None };
        let ran = self.rows(execution, |_row| Ok::<_, Infallible>(())).await;
        ran.map_err(|stopped| match stopped {
            Stopped::Sql(error) => error,
            Stopped::TooLong => unexpected(),
            Stopped::Reader(never) => match never {},
        })
    }

    async fn prepare(
        &mut self,
        sql: &str,
        parameters: &[Parameter],
    ) -> Result<(Vec<String>, Vec<u32>), sqlx::Error> {
        self.drain().await?;
        let oids = parameters.iter().map(|parameter| parameter.oid);
        frontend::parse("", sql, oids, &mut self.output)?;
        frontend::describe(b'S', "", &mut self.output)?;
        frontend::sync(&mut self.output);
        self.due += 1;
        let (mut columns, mut refused) = ((Vec::new(), Vec::new()), None);
        loop {
            match self.reply_or(&mut refused).await? {
                Reply::Message(Message::RowDescription(row)) => {
                    let mut fields = row.fields();
                    while let Some(field) = fields.next()? {
                        columns.0.push(field.name().to_owned());
                        columns.1.push(field.type_oid());
                    }
                }
                Reply::Message(Message::ErrorResponse(error)) => refused = Some(error),
                Reply::Message(Message::ReadyForQuery(_)) => {
                    return refused.map_or(Ok(columns), |error| Err(Refused::error(&error)));
                }
                Reply::Message(_) => {}
                Reply::CopyBoth => return Err(unexpected()),
            }
        }
    }

    /// Runs the statement that was described last, and passes its rows to `each`. If `each` or the caller
    /// gives up, the session is not at rest.
    pub(in super::super) async fn rows<E>(
        &mut self,
        execution: Execution<'_>,
        mut each: impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<(), Stopped<E>> {
        self.push_execution(&execution)?;
        let (mut fields, mut refused, mut turn) = (Vec::new(), None, 0);
        loop {
            let mut read = 0;
            while let Some(body) = next_row(self.input.get(read..).unwrap_or_default()) {
                read_fields(body, &mut fields).ok_or_else(unexpected)?;
                each(Row { body, fields: &fields }).map_err(Stopped::Reader)?;
                read += HEADER_BYTES + body.len();
                turn += 1;
                if turn % ROWS_A_TURN == 0 {
                    tokio::task::yield_now().await;
                }
            }
            self.input.advance(read);
            if let Some((ROW, whole)) = self.header() {
                if whole > execution.longest {
                    return Err(Stopped::TooLong);
                }
                if whole < HEADER_BYTES {
                    return Err(unexpected().into());
                }
                self.input.reserve(whole.saturating_sub(self.input.len()));
                self.exchange_or(&mut refused).await?;
                continue;
            }
            match self.received()? {
                None => self.exchange_or(&mut refused).await?,
                Some(Reply::Message(Message::ErrorResponse(error))) => {
                    refused.get_or_insert(error);
                }
                Some(Reply::Message(Message::ReadyForQuery(_))) if self.due == 0 => {
                    return refused.map_or(Ok(()), |error| Err(Refused::error(&error).into()));
                }
                Some(Reply::Message(_)) => {}
                Some(Reply::CopyBoth) => return Err(unexpected().into()),
            }
        }
    }

    fn push_execution(&mut self, execution: &Execution<'_>) -> Result<(), sqlx::Error> {
        let write = |parameter: &Parameter, out: &mut BytesMut| {
            let Some(value) = &parameter.value else { return Ok(IsNull::Yes) };
            out.extend_from_slice(value);
            Ok(IsNull::No)
        };
        let (values, output) = (execution.parameters, &mut self.output);
        frontend::bind("", "", [BINARY], values, write, [BINARY], output).map_err(|error| {
            match error {
                BindError::Serialization(error) => sqlx::Error::Io(error),
                BindError::Conversion(error) => sqlx::Error::Encode(error),
            }
        })?;
        frontend::execute("", 0, output)?;
        frontend::sync(output);
        self.due += 1;
        execution.then.map_or(Ok(()), |sql| self.push_query(sql))
    }

    async fn exchange_or(
        &mut self,
        refused: &mut Option<ErrorResponseBody>,
    ) -> Result<(), sqlx::Error> {
        let exchanged = self.exchange().await;
        exchanged.map_err(|lost| refused.take().map_or(lost, |error| Refused::error(&error)))
    }
}

const ROW: u8 = b'D';

/// The body of the row that comes next, if it has arrived whole.
fn next_row(input: &[u8]) -> Option<&[u8]> {
    match header(input)? {
        (ROW, whole) => input.get(HEADER_BYTES..whole),
        _ => None,
    }
}

/// Finds the columns of a row; `None` if it is malformed.
fn read_fields(body: &[u8], fields: &mut Vec<Field>) -> Option<()> {
    fields.clear();
    let (count, mut rest) = body.split_first_chunk()?;
    let mut start = 2;
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk()?;
        start += 4;
        let length = u32::try_from(i32::from_be_bytes(*length)).ok();
        fields.push(Field { start, length });
        let length = length.unwrap_or(0);
        rest = after.get(length as usize..)?;
        start += length;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(columns: &[Option<&[u8]>]) -> Vec<u8> {
        let mut body = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
        for column in columns {
            let length = column.map_or(-1, |column| i32::try_from(column.len()).unwrap());
            body.extend(length.to_be_bytes());
            body.extend_from_slice(column.unwrap_or_default());
        }
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[ROW][..], &length.to_be_bytes(), &body].concat()
    }

    #[test]
    fn a_row_is_read_where_it_lies_and_a_cut_one_is_not() {
        let columns: [Option<&[u8]>; 4] = [Some(b"seven"), None, Some(b""), Some(b"7")];
        let mut input = message(&columns);
        let whole = input.len();
        for length in 0..whole {
            assert!(next_row(&input[..length]).is_none(), "{length}");
        }
        input.extend(b"D\0");
        let body = next_row(&input).unwrap();
        assert_eq!(body.len(), whole - HEADER_BYTES);
        let mut fields = Vec::new();
        read_fields(body, &mut fields).unwrap();
        let row = Row { body, fields: &fields };
        for (index, column) in columns.into_iter().enumerate() {
            assert_eq!(row.value(index), column);
        }
        assert_eq!(row.value(4), None);
        for length in 0..body.len() {
            assert!(read_fields(&body[..length], &mut fields).is_none(), "{length}");
        }
        assert!(next_row(b"C\0\0\0\x05\0").is_none());
    }
}

//! The parameters of a statement, in the binary format.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgTypeInfo};
use sqlx::{Arguments, Encode, Postgres, Type};

/// A parameter of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Parameter {
    /// The OID of its type.
    pub(in super::super) oid: u32,
    /// Its bytes in the binary format; `None` for NULL.
    pub(in super::super) value: Option<Vec<u8>>,
}

impl Parameter {
    /// A text.
    pub(in super::super) fn text(text: String) -> Self {
        const TEXT: u32 = 25;
        Self { oid: TEXT, value: Some(text.into_bytes()) }
    }

    /// An array of the type `array` with elements of the type `element`, each appended by `write`.
    pub(in super::super) fn array<T, E>(
        (array, element): (u32, u32),
        elements: impl Iterator<Item = T>,
        mut write: impl FnMut(T, &mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Self, E> {
        const HAS_NO_NULL: [u8; 4] = [0; 4];
        const FIRST_INDEX: [u8; 4] = [0, 0, 0, 1];
        let (mut count, mut all, mut written) = (0, Vec::new(), Vec::new());
        for element in elements {
            written.clear();
            write(element, &mut written)?;
            all.extend_from_slice(&length(written.len()).to_be_bytes());
            all.extend_from_slice(&written);
            count += 1;
        }
        let dimensions = i32::from(count > 0);
        let mut wire = [dimensions.to_be_bytes(), HAS_NO_NULL, element.to_be_bytes()].concat();
        if count > 0 {
            wire.extend_from_slice(&length(count).to_be_bytes());
            wire.extend_from_slice(&FIRST_INDEX);
            wire.append(&mut all);
        }
        Ok(Self { oid: array, value: Some(wire) })
    }

    /// The same parameters for sqlx.
    pub(in super::super) fn arguments(parameters: &[Self]) -> Result<PgArguments, sqlx::Error> {
        let mut arguments = PgArguments::default();
        for parameter in parameters {
            arguments.add(parameter.clone()).map_err(sqlx::Error::Encode)?;
        }
        Ok(arguments)
    }
}

fn length(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

impl Type<Postgres> for Parameter {
    fn type_info() -> PgTypeInfo {
        <String as Type<Postgres>>::type_info()
    }
}

impl Encode<'_, Postgres> for Parameter {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let Some(value) = &self.value else { return Ok(IsNull::Yes) };
        buffer.extend_from_slice(value);
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(PgTypeInfo::with_oid(Oid(self.oid)))
    }
}

//! `preheat schema`.

use super::{Exit, Failure, output};
use crate::definition;

pub(super) fn run() -> Result<Exit, Failure> {
    output::json(&definition::schema())?;
    Ok(Exit::Ok)
}

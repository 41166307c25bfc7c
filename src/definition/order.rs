//! Checks `query.order`.

use std::ops::Range;

use super::check::Check;
use super::limit;
use super::read::Located;
use crate::domain::order::{OrderColumn, OrderProblem};

impl Check<'_> {
    pub(super) fn order(&mut self, order: &Located<Vec<Located<String>>>) -> Vec<OrderColumn> {
        if order.value.is_empty()
            && !self.problems.iter().any(|problem| problem.is_within(&order.at))
        {
            let problem = self.at(&order.at, "the list is empty");
            self.problem(
                problem.hint("leave it out for the order in which the query returns rows"),
            );
        }
        if order.value.len() > limit::ORDER {
            let message = format!("`order` has at most {} columns", limit::ORDER);
            self.problem(self.at(&order.at, message));
        }
        let mut checked: Vec<(OrderColumn, Range<usize>)> = Vec::new();
        for text in order.value.iter().take(limit::ORDER) {
            let column = match OrderColumn::parse(&text.value) {
                Ok(column) => column,
                Err(error) => {
                    let problem = self.inside(text, error.at.clone(), error.to_string());
                    self.problem(problem.hint(order_hint(&error.problem, &text.value)));
                    continue;
                }
            };
            if let Some((_, before)) =
                checked.iter().find(|(other, _)| other.name() == column.name())
            {
                let message = format!("`{}` stands here twice", column.name());
                self.problem(self.at(&text.at, message).note(before.clone(), "the first time"));
                continue;
            }
            checked.push((column, text.at.clone()));
        }
        checked.into_iter().map(|(column, _)| column).collect()
    }
}

/// The hint for an entry of `query.order` that cannot be read.
fn order_hint(problem: &OrderProblem, text: &str) -> String {
    match problem {
        OrderProblem::Comma => {
            let columns = text.split(',').map(str::trim).filter(|column| !column.is_empty());
            let columns: Vec<_> = columns.map(|column| format!("\"{column}\"")).collect();
            format!("write each as a text of its own: `order = [{}]`", columns.join(", "))
        }
        OrderProblem::Collation(_) => {
            "write `collate C` if the order of bytes is meant, or sort in the SQL and leave out `order`"
                .to_owned()
        }
        OrderProblem::OpenQuote => "a double quote within a name is written twice".to_owned(),
        OrderProblem::NoColumn | OrderProblem::Unexpected { .. } => {
            "an entry is `COLUMN [collate C] [asc | desc] [nulls first | nulls last]`; for an \
             expression, let the query return a column with its value, and name it in `encode.omit`"
                .to_owned()
        }
    }
}

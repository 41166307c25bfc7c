//! Questions to the person at the terminal, and the answers that are assumed without a terminal.

use std::io::{self, BufRead, IsTerminal, Write};

/// Who decides between several answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chooser {
    /// The person at the terminal.
    Person,
    /// Nobody: the first answer, which is the best one, is taken (`--yes`).
    First,
    /// Nobody, and only what is clear is taken.
    Clear,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// Nobody may choose between several answers.
    NotClear,
    /// The person ended the questions, or said no.
    Ended,
    /// The terminal failed.
    Failed(io::Error),
}

impl Chooser {
    /// The one that these circumstances call for.
    pub(super) fn new(yes: bool) -> Self {
        if yes {
            Self::First
        } else if io::stdin().is_terminal() && io::stderr().is_terminal() {
            Self::Person
        } else {
            Self::Clear
        }
    }

    /// The position of the chosen answer. The first one is the best; `is_clear` says whether there is no
    /// doubt about it.
    pub(super) fn choose(
        self,
        question: &str,
        answers: &[String],
        is_clear: bool,
    ) -> Result<usize, NoAnswer> {
        match self {
            Self::First => Ok(0),
            Self::Clear if is_clear => Ok(0),
            Self::Clear => Err(NoAnswer::NotClear),
            Self::Person => {
                let (mut stdin, mut stderr) = (io::stdin().lock(), io::stderr().lock());
                choose(&mut stdin, &mut stderr, question, answers)
            }
        }
    }

    /// Whether the person agrees. Where nobody is asked, all is agreed to.
    pub(super) fn agrees(self, question: &str) -> Result<bool, NoAnswer> {
        match self {
            Self::First | Self::Clear => Ok(true),
            Self::Person => {
                let (mut stdin, mut stderr) = (io::stdin().lock(), io::stderr().lock());
                agrees(&mut stdin, &mut stderr, question)
            }
        }
    }
}

impl From<io::Error> for NoAnswer {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

fn choose(
    from: &mut impl BufRead,
    to: &mut impl Write,
    question: &str,
    answers: &[String],
) -> Result<usize, NoAnswer> {
    writeln!(to, "{question}")?;
    for (index, answer) in answers.iter().enumerate() {
        writeln!(to, "  {}) {answer}", index + 1)?;
    }
    loop {
        let line = ask(from, to, "number [1]: ")?;
        let number = if line.is_empty() { Some(1) } else { line.parse::<usize>().ok() };
        let by_name = || answers.iter().position(|answer| *answer == line);
        let index = number.and_then(|number| number.checked_sub(1)).or_else(by_name);
        match index.filter(|index| *index < answers.len()) {
            Some(index) => return Ok(index),
            None => writeln!(to, "a number from 1 to {}", answers.len())?,
        }
    }
}

fn agrees(from: &mut impl BufRead, to: &mut impl Write, question: &str) -> Result<bool, NoAnswer> {
    loop {
        match ask(from, to, &format!("{question} [Y/n]: "))?.to_lowercase().as_str() {
            "" | "y" | "yes" => return Ok(true),
            "n" | "no" => return Ok(false),
            _ => writeln!(to, "`y` or `n`")?,
        }
    }
}

fn ask(from: &mut impl BufRead, to: &mut impl Write, prompt: &str) -> Result<String, NoAnswer> {
    write!(to, "{prompt}")?;
    to.flush()?;
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        writeln!(to)?;
        return Err(NoAnswer::Ended);
    }
    Ok(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(said: &str) -> (Option<usize>, String) {
        let mut shown = Vec::new();
        let answers = ["tenants".to_owned(), "users".to_owned()];
        let index = choose(&mut said.as_bytes(), &mut shown, "which?", &answers).ok();
        (index, String::from_utf8(shown).unwrap())
    }

    #[test]
    fn an_answer_is_a_number_a_name_or_nothing_for_the_first() {
        assert_eq!(chosen("\n").0, Some(0));
        assert_eq!(chosen("2\n").0, Some(1));
        assert_eq!(chosen("users\n").0, Some(1));
        let (index, shown) = chosen("0\n3\nno\n2\n");
        assert_eq!(index, Some(1));
        assert_eq!(shown.matches("a number from 1 to 2").count(), 3, "{shown}");
        assert_eq!(chosen("7\n").0, None, "the end of the input is no answer");
    }

    #[test]
    fn only_no_is_no() {
        for (said, is_yes) in [("\n", true), ("Yes\n", true), ("n\n", false), ("what\nno\n", false)]
        {
            assert_eq!(agrees(&mut said.as_bytes(), &mut Vec::new(), "so?").ok(), Some(is_yes));
        }
    }

    #[test]
    fn without_a_person_only_what_is_clear_is_taken() {
        let two = ["a".to_owned(), "b".to_owned()];
        assert!(matches!(Chooser::Clear.choose("?", &two, true), Ok(0)));
        assert!(matches!(Chooser::Clear.choose("?", &two, false), Err(NoAnswer::NotClear)));
        assert!(matches!(Chooser::First.choose("?", &two, false), Ok(0)));
    }
}

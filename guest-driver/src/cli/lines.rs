//! Lists of paths and files, line by line as they arrive. Names of files may be any bytes, so lines are bytes.

use super::file_error;
use receipt_store::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Longest line: a path of a receipt and one of a file are shorter.
const LINE_BYTES_MAX: u64 = 16 << 10;

/// The lines of a file without their ends, empty ones left out. Nothing comes after an error.
pub struct Lines {
    input: Box<dyn BufRead>,
    name: PathBuf,
    is_at_end: bool,
}

impl Lines {
    /// Opens a file, or standard input for `-`.
    pub fn open(name: &Path) -> Result<Self> {
        let input: Box<dyn BufRead> = if name == Path::new("-") {
            Box::new(std::io::stdin().lock())
        } else {
            Box::new(BufReader::new(File::open(name).map_err(|error| file_error(name, error))?))
        };
        Ok(Self { input, name: name.to_owned(), is_at_end: false })
    }

    fn read(&mut self) -> Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let mut input = self.input.by_ref().take(LINE_BYTES_MAX + 1);
        let len = input.read_until(b'\n', &mut line).map_err(|error| file_error(&self.name, error))?;
        if line.len() as u64 > LINE_BYTES_MAX {
            let name = self.name.display();
            return Err(Error::Usage(format!("{name}: a line is longer than {LINE_BYTES_MAX} bytes")));
        }
        for end in [b'\n', b'\r'] {
            line.pop_if(|last| *last == end);
        }
        Ok((len > 0).then_some(line))
    }
}

impl Iterator for Lines {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_at_end {
            match self.read().transpose() {
                Some(Ok(line)) if line.is_empty() => {}
                line => {
                    self.is_at_end = !matches!(line, Some(Ok(_)));
                    return line;
                }
            }
        }
        None
    }
}

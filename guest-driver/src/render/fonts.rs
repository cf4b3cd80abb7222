//! The fonts a receipt is set in. All must be there before anything is drawn: missing fonts would give blank paper.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use resvg::usvg::fontdb::{Database, Family, Query, Source};

/// Headings, names and Chinese text; package fonts-noto-cjk.
pub const SANS: &str = "Noto Sans CJK SC";
/// Titles, the seal and amounts in words; package fonts-noto-cjk.
pub const SERIF: &str = "Noto Serif CJK SC";
/// Numbers; package fonts-dejavu-core.
pub const MONO: &str = "DejaVu Sans Mono";
/// Letters that the others lack (Cyrillic, Greek, Arabic); package fonts-dejavu-core.
const FALLBACK: &str = "DejaVu Sans";

/// Where Debian's font packages put their files.
pub const SYSTEM_FONT_DIR: &str = "/usr/share/fonts";

/// Why the fonts could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum FontError {
    /// None of the folders has this font.
    #[error(
        "font {family:?} not found in {folders}; install it with: apt-get install fonts-noto-cjk fonts-dejavu-core"
    )]
    Missing {
        /// The family that is needed.
        family: &'static str,
        /// Where it was looked for.
        folders: String,
    },
    /// A font file is there but cannot be read.
    #[error("cannot read the font file {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Loads the four families from `folders`, searched with their subfolders.
///
/// # Errors
/// [`FontError`] when a family is in none of the folders or a file cannot be read.
pub fn load(folders: &[PathBuf]) -> Result<Arc<Database>, FontError> {
    let mut found = Database::new();
    for folder in folders {
        found.load_fonts_dir(folder);
    }
    let mut files = BTreeSet::new();
    for family in [SANS, SERIF, MONO, FALLBACK] {
        let query = Query { families: &[Family::Name(family)], ..Query::default() };
        if found.query(&query).is_none() {
            let folders =
                folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
            return Err(FontError::Missing { family, folders });
        }
        let faces = found.faces().filter(|face| face.families.iter().any(|(name, _)| name == family));
        files.extend(faces.filter_map(|face| match &face.source {
            Source::File(path) => Some(path.clone()),
            // Not made by load_fonts_dir.
            _ => None,
        }));
    }
    // Held in memory: a database of file names would read 20 MB of font again for every line of text.
    let mut database = Database::new();
    for path in files {
        database.load_font_data(read(&path)?);
    }
    Ok(Arc::new(database))
}

fn read(path: &Path) -> Result<Vec<u8>, FontError> {
    std::fs::read(path).map_err(|source| FontError::Unreadable { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_fonts_are_an_error_that_says_what_to_install() {
        let empty = tempfile::tempdir().unwrap();
        let error = load(&[empty.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains("Noto Sans CJK SC") && error.contains("fonts-noto-cjk"), "{error}");
    }
}

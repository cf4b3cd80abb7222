//! Group names to numbers.

/// The number of a group given by name or number, as /etc/group has it.
#[must_use]
pub fn group_id(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    find(&groups, text)
}

/// `groups` has lines of name:password:number:members (group(5)).
fn find(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_number_of_a_group() {
        let groups = "root:x:0:\nkvm:x:104:alice,bob\nkvm2:x:105:\nbroken\n";
        assert_eq!(find(groups, "kvm"), Some(104));
        assert_eq!(find(groups, "kv"), None);
        assert_eq!(find(groups, "broken"), None);
        assert_eq!(group_id("104"), Some(104));
    }
}

//! What of a stranger's text may be shown to a person.

/// False for characters that move a terminal's cursor, hide, or turn the direction of what stands
/// after them: controls (Unicode's category Cc), line and paragraph separators (Zl, Zp), and the
/// format characters (Cf) that "Trojan Source" (CVE-2021-42574) is made of.
pub fn may_be_shown(c: char) -> bool {
    let hides = matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !(c.is_control() || hides)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_any_language_are_shown_and_tricks_are_not() {
        assert!("web 1, größer, память, 記憶, ذاكرة, 🦀".chars().all(may_be_shown));
        let tricks =
            ['\n', '\u{1b}', '\u{9b}', '\u{202e}', '\u{2066}', '\u{2028}', '\u{200b}', '\u{feff}'];
        assert!(!tricks.into_iter().any(may_be_shown));
    }
}

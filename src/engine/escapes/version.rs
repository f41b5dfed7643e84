//! Versions as Debian compares them, which also orders everybody else's here.

use std::cmp::Ordering;

/// Compares two versions of packages: epoch, version, revision. `~` comes before the
/// end, so that `1.0~rc1` is below `1.0`; upstream's `1.0-rc1` is read the same way.
#[must_use]
pub fn compare(a: &str, b: &str) -> Ordering {
    let (a_epoch, a_version, a_revision) = split(a);
    let (b_epoch, b_version, b_revision) = split(b);
    a_epoch
        .cmp(&b_epoch)
        .then_with(|| compare_parts(&a_version, &b_version))
        .then_with(|| compare_parts(a_revision, b_revision))
}

/// Returns the upstream version inside a package's: without epoch, revision and what a
/// distribution adds when it repacks.
#[must_use]
pub fn upstream(version: &str) -> String {
    let (_, version, _) = split(version);
    let end = ["+", "~ds", "~dfsg", "~git"].iter().filter_map(|mark| version.find(mark)).min();
    version[..end.unwrap_or(version.len())].to_owned()
}

/// Says whether an upstream version has a fix that went into these versions, one of a
/// branch (the first two numbers), lowest first.
pub(super) fn is_fixed_upstream(version: &str, fixed: &[String]) -> bool {
    let branch = branch(version);
    match fixed.iter().find(|fixed| self::branch(fixed) == branch) {
        Some(fixed) => compare(version, fixed).is_ge(),
        None => fixed.iter().all(|fixed| self::branch(fixed) < branch),
    }
}

/// Returns the first two numbers of a version.
fn branch(version: &str) -> (u64, u64) {
    let mut numbers = version.split(['.', '-', '~', '+']).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Splits a version into epoch, version and revision.
fn split(version: &str) -> (u64, String, &str) {
    let version = version.trim().trim_start_matches('v');
    let (epoch, rest) = match version.split_once(':') {
        Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
        None => (0, version),
    };
    // What upstream calls `-rc` is no revision.
    let candidate =
        |revision: &str| ["rc", "beta", "alpha"].iter().any(|word| revision.starts_with(word));
    match rest.rsplit_once('-') {
        Some((version, revision)) if !candidate(revision) => {
            (epoch, version.replace("-rc", "~rc"), revision)
        }
        _ => (epoch, rest.replace("-rc", "~rc").replace("-beta", "~beta"), ""),
    }
}

/// Compares by turns what is no number and what is one, as dpkg does.
fn compare_parts(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        let (a_text, b_text) = (text_length(a), text_length(b));
        for at in 0..a_text.max(b_text) {
            let weight = |bytes: &[u8], length| if at < length { weight(bytes[at]) } else { 0 };
            match weight(a, a_text).cmp(&weight(b, b_text)) {
                Ordering::Equal => {}
                other => return other,
            }
        }
        let (a_number, a_rest) = number(&a[a_text..]);
        let (b_number, b_rest) = number(&b[b_text..]);
        // Without leading zeros the longer number is the larger one.
        match a_number.len().cmp(&b_number.len()).then_with(|| a_number.cmp(b_number)) {
            Ordering::Equal => {}
            other => return other,
        }
        (a, b) = (a_rest, b_rest);
    }
    Ordering::Equal
}

fn text_length(bytes: &[u8]) -> usize {
    bytes.iter().position(u8::is_ascii_digit).unwrap_or(bytes.len())
}

/// Orders `~` before the end, the end before letters, and those before the rest.
fn weight(byte: u8) -> i32 {
    match byte {
        b'~' => -1,
        letter if letter.is_ascii_alphabetic() => i32::from(letter),
        other => i32::from(other) + 256,
    }
}

/// Splits off the digits at the start, without leading zeros.
fn number(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(bytes.len());
    let zeros = bytes[..end].iter().take_while(|&&byte| byte == b'0').count();
    (&bytes[zeros..end], &bytes[end..])
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const RISING: [&str; 18] = [
        "0.9",
        "1.0.0~rc6+dfsg1-2",
        "1.0.0~rc93+ds1-5",
        "1.0.0~rc93+ds1-5+deb11u3",
        "1.0.0",
        "1.1.4+ds1-1",
        "1.1.5+ds1-1",
        "1.1.5+ds1-1+b1",
        "1.1.5+ds1-1+deb12u1",
        "1.1.7-0ubuntu1~20.04.2",
        "1.1.7-0ubuntu1~22.04.1",
        "1.1.7-0ubuntu1~22.04.2",
        "1.1.12",
        "1.2.8",
        "1.6.20~ds1-1+deb12u2",
        "1.6.20",
        "20.10.24+dfsg1-1+deb12u1+b6",
        "5:28.0.1-1~debian.12~bookworm",
    ];

    #[test]
    fn versions_rise_as_they_do_for_debian() {
        for (at, low) in RISING.iter().enumerate() {
            assert_eq!(compare(low, low), Ordering::Equal);
            for high in &RISING[at + 1..] {
                assert_eq!(compare(low, high), Ordering::Less, "{low} < {high}");
                assert_eq!(compare(high, low), Ordering::Greater, "{high} > {low}");
            }
        }
    }

    #[test]
    fn dpkg_agrees() {
        for low in RISING {
            for high in RISING {
                let word = match compare(low, high) {
                    Ordering::Less => "lt",
                    Ordering::Equal => "eq",
                    Ordering::Greater => "gt",
                };
                let arguments = ["--compare-versions", low, word, high];
                let status = Command::new("dpkg").args(arguments).status().unwrap();
                assert!(status.success(), "dpkg {}", arguments.join(" "));
            }
        }
    }

    #[test]
    fn upstreams_candidates_come_before_their_release() {
        assert_eq!(compare("1.4.0-rc.3", "1.4.0"), Ordering::Less);
        assert_eq!(compare("1.4.0-rc.2", "1.4.0-rc.3"), Ordering::Less);
        assert_eq!(compare("1.0.0-rc10", "1.0.0-rc95"), Ordering::Less);
        assert_eq!(compare("v1.2.8", "1.2.8"), Ordering::Equal);
    }

    #[test]
    fn upstreams_version_is_found_in_a_packages() {
        for (package, version) in [
            ("1.1.5+ds1-1+deb12u1", "1.1.5"),
            ("1.6.20~ds1-1+deb12u3", "1.6.20"),
            ("5:28.0.1-1~debian.12~bookworm", "28.0.1"),
            ("1.3.3-0ubuntu1~24.04.2", "1.3.3"),
            ("20.10.24+dfsg1", "20.10.24"),
            ("1.4.0-rc.3", "1.4.0~rc.3"),
            ("1.0.0~rc93+ds1-5", "1.0.0~rc93"),
        ] {
            assert_eq!(upstream(package), version, "{package}");
        }
    }
}

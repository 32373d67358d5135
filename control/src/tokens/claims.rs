// SPDX-License-Identifier: Apache-2.0
//! What a ServiceAccount token says of itself (RFC 7519). Nothing here is verified: it tells early
//! what no API server would let pass, and until when what it did let pass counts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

/// The longest token that is looked at, in bytes.
const MOST: usize = 8 << 10;

/// What a token claims.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Claims {
    /// Whose it is.
    pub(super) sub: String,
    /// Whom it is for.
    pub(super) aud: Audiences,
    /// When it ends, in seconds since 1970.
    exp: u64,
}

/// One, or many (RFC 7519 section 4.1.3).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Audiences {
    One(String),
    Many(Vec<String>),
}

/// A token that is not worth a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Hopeless {
    #[error("it is no JSON Web Token")]
    NoToken,
    #[error("it is another ServiceAccount's")]
    OtherSubject,
    #[error("it is for another audience")]
    OtherAudience,
    #[error("it has expired")]
    Expired,
}

// === impl Claims ===

impl Claims {
    /// What `token` claims, if that is what `subject` would claim towards `audience` at `now`.
    pub(super) fn of(
        token: &str,
        subject: &str,
        audience: &str,
        now: SystemTime,
    ) -> Result<Self, Hopeless> {
        let claims = Self::read(token).ok_or(Hopeless::NoToken)?;
        if claims.sub != subject {
            return Err(Hopeless::OtherSubject);
        }
        if !claims.aud.has(audience) {
            return Err(Hopeless::OtherAudience);
        }
        if claims.expires() <= now {
            return Err(Hopeless::Expired);
        }
        Ok(claims)
    }

    /// When the token ends.
    pub(super) fn expires(&self) -> SystemTime {
        let most = Duration::from_secs(u64::from(u32::MAX));
        UNIX_EPOCH + Duration::from_secs(self.exp).min(most)
    }

    fn read(token: &str) -> Option<Self> {
        if token.len() > MOST {
            return None;
        }
        let mut parts = token.split('.');
        let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        serde_json::from_slice(&decode(payload)?).ok()
    }
}

// === impl Audiences ===

impl Audiences {
    fn has(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Many(many) => many.iter().any(|one| one == audience),
        }
    }
}

/// Base64 for URLs, without padding (RFC 4648 section 5).
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    for digits in text.as_bytes().chunks(4) {
        if digits.len() == 1 {
            return None;
        }
        let bits = digits.iter().try_fold(0, |bits: u32, digit| {
            Some(bits << 6 | u32::from(value(*digit)?))
        })?;
        let missing = 4 - digits.len();
        let all = (bits << (6 * missing)).to_be_bytes();
        bytes.extend_from_slice(all.get(1..4 - missing)?);
    }
    Some(bytes)
}

fn value(digit: u8) -> Option<u8> {
    match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        b'-' => Some(62),
        b'_' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECT: &str = "system:serviceaccount:culvert:culvert-proxy";

    /// `{"alg":"none"}`, the payload of RFC 7519 section 3.1 in another order, and a signature.
    fn token(payload: &str) -> String {
        format!("e30.{}.c2ln", super::super::testing::encode(payload))
    }

    #[test]
    fn only_what_an_api_server_may_let_pass_is_worth_a_question() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let of = |payload: &str| Claims::of(&token(payload), SUBJECT, "culvert.io/control", now);
        let claims = |sub, aud, exp| format!(r#"{{"sub":"{sub}","aud":{aud},"exp":{exp}}}"#);
        let ours = r#"["culvert.io/control"]"#;
        let good = of(&claims(SUBJECT, ours, 1001)).map(|claims| claims.expires());
        assert_eq!(good, Ok(now + Duration::from_secs(1)));
        assert!(of(&claims(SUBJECT, r#""culvert.io/control""#, 1001)).is_ok());
        for (sub, aud, exp, why) in [
            (SUBJECT, ours, 1000, Hopeless::Expired),
            (SUBJECT, r#"["api"]"#, 1001, Hopeless::OtherAudience),
            (
                "system:serviceaccount:a:b",
                ours,
                1001,
                Hopeless::OtherSubject,
            ),
        ] {
            assert_eq!(of(&claims(sub, aud, exp)), Err(why));
        }
    }

    #[test]
    fn garbage_is_no_token() {
        let long = "a".repeat(MOST + 1);
        for garbage in ["", "a", "a.b", "a.b.c.d", "e30.e30.c2ln", "e30.&.c", &long] {
            let read = Claims::of(garbage, SUBJECT, "a", SystemTime::now());
            assert_eq!(read, Err(Hopeless::NoToken), "{garbage}");
        }
        for (text, bytes) in [
            ("", &b""[..]),
            ("Zg", b"f"),
            ("Zm8", b"fo"),
            ("Zm9v", b"foo"),
        ] {
            assert_eq!(decode(text).as_deref(), Some(bytes));
        }
        assert_eq!(decode("A"), None);
        assert_eq!(decode("-_-_").as_deref(), Some(&[0xfb, 0xff, 0xbf][..]));
    }
}

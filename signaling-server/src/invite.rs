//! The invitation: the URL to scan, as QR code for pages and for terminals.

use barycenter_protocol::api::Invite;
use barycenter_protocol::auth::Invitation;
use qrcode::{EcLevel, QrCode};

/// URL and SVG.
pub fn invite(invitation: &Invitation) -> Invite {
    let url = invitation.url();
    let svg = match code(&url) {
        Some(code) => code.render::<qrcode::render::svg::Color>().min_dimensions(240, 240).build(),
        None => String::new(),
    };
    Invite { url, svg }
}

/// The QR code as lines of half blocks for a terminal with a dark background.
pub fn terminal(url: &str) -> String {
    use qrcode::render::unicode::Dense1x2;
    match code(url) {
        Some(code) => code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build(),
        None => String::new(),
    }
}

/// Low error correction: a screen is clean, and fewer modules scan from farther away.
fn code(url: &str) -> Option<QrCode> {
    QrCode::with_error_correction_level(url, EcLevel::L).inspect_err(|error| log::warn!("no QR code: {error}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use barycenter_protocol::auth::RoomSecret;

    #[test]
    fn an_invitation_is_a_picture_too() {
        let invitation = Invitation { origin: "https://192.168.178.20:8443".into(), secret: RoomSecret::from_bytes([3; 16]), certificate_sha256: Some("ab".repeat(32)) };
        assert!(invite(&invitation).svg.contains("<svg"));
        assert!(terminal(&invitation.url()).lines().count() > 10);
    }
}

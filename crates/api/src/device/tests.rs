//! The words of the control protocol.

use super::*;

/// The lines that the module's documentation shows are the lines that are spoken.
#[test]
fn the_documented_lines_are_spoken() {
    let call = |request| serde_json::to_string(&Call { id: 1, call: request }).unwrap();
    assert_eq!(
        call(Request::Attach { version: 1, role: Role::Controller }),
        r#"{"id":1,"call":{"attach":{"version":1,"role":"controller"}}}"#
    );
    assert_eq!(call(Request::Status), r#"{"id":1,"call":"status"}"#);
    assert_eq!(
        call(Request::Decide { ticket: 7, decision: Decision::Hold("host-budget".into()) }),
        r#"{"id":1,"call":{"decide":{"ticket":7,"decision":{"hold":"host-budget"}}}}"#
    );
    let done = FromDevice::Reply(Reply { id: 2, result: Outcome::Ok(Answer::Done) });
    assert_eq!(serde_json::to_string(&done).unwrap(), r#"{"id":2,"ok":"done"}"#);
    let event = FromDevice::Event { event: Event::ReturnCancelled { ticket: 7 } };
    let text = r#"{"event":{"return_cancelled":{"ticket":7}}}"#;
    assert_eq!(serde_json::to_string(&event).unwrap(), text);
    assert_eq!(serde_json::from_str::<FromDevice>(text).unwrap(), event);
}

#[test]
fn a_refusal_and_a_status_are_told_apart() {
    for result in [
        Outcome::Ok(Answer::Status(Box::default())),
        Outcome::Error(Refusal { name: "no-such-ticket".into(), message: "..".into() }),
    ] {
        let reply = FromDevice::Reply(Reply { id: 3, result });
        let text = serde_json::to_string(&reply).unwrap();
        assert_eq!(serde_json::from_str::<FromDevice>(&text).unwrap(), reply);
    }
}

#[test]
fn unknown_fields_of_a_call_are_refused() {
    assert!(serde_json::from_str::<Call>(r#"{"id":1,"call":"status","x":1}"#).is_err());
    let text = r#"{"id":1,"call":{"set_target":{"baloon":1}}}"#;
    let error = serde_json::from_str::<Call>(text).unwrap_err().to_string();
    assert!(error.contains("baloon"), "{error}");
}

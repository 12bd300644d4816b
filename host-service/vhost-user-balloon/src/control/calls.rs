//! What clients may ask, and who may ask it.

use memtide_api::device::{Answer, Call, Outcome, Refusal, Reply, Request, Role, VERSION};
use memtide_api::line::LineError;
use memtide_units::Instant;

use super::{ClientId, Gone, status, translate};
use crate::service::Service;

/// Calls of one client that are answered before others get their turn: the VMM above all, which has a
/// virtual processor wait for us.
const CALLS_AT_ONCE: usize = 16;

impl Service {
    /// Reads what a client sent and answers it.
    pub(crate) fn serve_client(&mut self, id: ClientId, now: Instant) -> Result<(), Gone> {
        let Some(client) = self.control.client(id) else { return Ok(()) };
        client.flush()?;
        client.read(now)?;
        for _ in 0..CALLS_AT_ONCE {
            let call = self.control.client(id).map_or(Ok(None), |client| client.next_call())?;
            let Some(call) = call else { break };
            let reply = self.answer(id, call, now);
            self.control.reply(id, reply)?;
        }
        Ok(())
    }

    fn answer(&mut self, client: ClientId, call: Result<Call, LineError>, now: Instant) -> Reply {
        let (id, result) = match call {
            Ok(Call { id, call }) => (id, self.carry_out(client, call, now)),
            Err(error) => (0, Err(refusal("bad-request", error.to_string()))),
        };
        let result = match result {
            Ok(answer) => Outcome::Ok(answer),
            Err(refusal) => Outcome::Error(refusal),
        };
        Reply { id, result }
    }

    fn carry_out(
        &mut self,
        client: ClientId,
        request: Request,
        now: Instant,
    ) -> Result<Answer, Refusal> {
        match request {
            Request::Attach { version, role } => {
                self.attach(client, version, role, now)?;
                return Ok(self.status(now));
            }
            Request::Status => return Ok(self.status(now)),
            Request::Decide { ticket, decision } => {
                self.check_steers(client)?;
                let decision = translate::decision(decision).map_err(|name| {
                    refusal("bad-request", format!("\"{name}\" is no reason that a guest knows"))
                })?;
                self.balloon
                    .decide(ticket, decision, now)
                    .map_err(|error| refusal("no-such-ticket", error.to_string()))?;
            }
            Request::SetTarget { balloon } => {
                self.check_steers(client)?;
                self.balloon.set_target(balloon);
            }
            Request::SetMin { min } => {
                self.check_steers(client)?;
                self.balloon.set_min(min);
            }
            Request::SetLocalRule { rule } => {
                self.check_steers(client)?;
                self.balloon.set_local_rule(translate::wanted_rule(rule));
            }
            Request::AskHello => {
                self.check_steers(client)?;
                self.balloon.ask_hello();
            }
            Request::SetPluggable { ranges } => {
                self.check_controls(client)?;
                let pluggable =
                    translate::pluggable(&ranges).map_err(|why| refusal("bad-request", why))?;
                self.balloon.set_pluggable(pluggable);
            }
        }
        Ok(Answer::Done)
    }

    fn status(&mut self, now: Instant) -> Answer {
        self.balloon.want_stats(now);
        let regions = self.session.as_ref().map(|session| session.regions());
        Answer::Status(Box::new(status::status(&self.balloon, regions, now)))
    }

    fn attach(
        &mut self,
        id: ClientId,
        version: u32,
        role: Role,
        now: Instant,
    ) -> Result<(), Refusal> {
        if version != VERSION {
            let text =
                format!("this device speaks version {VERSION}, the client version {version}");
            return Err(refusal("version-mismatch", text));
        }
        let controller = self.control.controller();
        if role == Role::Controller && controller.is_some_and(|other| other != id) {
            let text = "another client is attached as controller; attach as observer, or stop it";
            return Err(refusal("controller-present", text.into()));
        }
        if role == Role::Observer && !self.control.has_room_to_watch(id) {
            let text = "as many clients watch as may; end one of them";
            return Err(refusal("too-many-clients", text.into()));
        }
        match (role, controller) {
            (Role::Controller, _) => self.balloon.controller_attached(),
            (Role::Observer, Some(other)) if other == id => self.balloon.controller_left(now),
            (Role::Observer, _) => {}
        }
        if let Some(client) = self.control.client(id) {
            client.role = Some(role);
        }
        Ok(())
    }

    /// A controller steers alone. While there is none, anybody who may connect may set things and
    /// decide what the local rule holds: a person at a terminal, a script. Whoever may connect could
    /// attach as controller just as well.
    fn check_steers(&self, client: ClientId) -> Result<(), Refusal> {
        match self.control.controller() {
            Some(controller) if controller != client => {
                Err(refusal("not-controller", "another client is attached as controller".into()))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Only who stays can promise to plug something in.
    fn check_controls(&self, client: ClientId) -> Result<(), Refusal> {
        self.check_steers(client)?;
        match self.control.controller() {
            Some(_) => Ok(()),
            None => Err(refusal("not-controller", "attach as controller first".into())),
        }
    }
}

fn refusal(name: &str, message: String) -> Refusal {
    Refusal { name: name.into(), message }
}

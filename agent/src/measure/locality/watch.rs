//! Keeps answers about all named data sets fresh, within a budget, and tells what is news.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bulkhead_proto::v1::DataAccess;
use tokio::sync::{mpsc, oneshot, watch as channel};

use super::{LookError, Looker, bandwidth::Meter, news::is_news, untold};
use crate::{config::LocalityConfig, launch::blocking};

/// Looks that hang in the kernel, in file systems that do not answer; beyond it no more are begun.
const MOST_HANGING: usize = 16;
/// Looks of so long in all may go before their budget: new data sets are answered at once, unless they come in masses.
const BURST: Duration = Duration::from_secs(5);
/// Answers in one message. With the longest names it stays far below what gRPC takes.
pub const MOST_ANSWERS: usize = 64;
/// Batches of answers that may wait to be taken.
const QUEUE: usize = 4;

/// Where answers come out, in batches of at most [`MOST_ANSWERS`].
pub type Answers = mpsc::Receiver<Vec<DataAccess>>;

/// Hears of each look how long it took, and how many data sets there are.
pub type LookCost = Box<dyn Fn(Duration, usize) + Send + Sync>;

/// What frameworks named, by framework.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Named {
    session: u64,
    by_framework: BTreeMap<String, Vec<String>>,
}

/// Where data sets are named; cheap to clone.
#[derive(Clone, Debug)]
pub struct Names(channel::Sender<Named>);

impl Names {
    /// The data sets of this framework, instead of those that it named before.
    pub fn set(&self, framework: &str, names: Vec<String>) {
        self.0.send_if_modified(|named| {
            let before = named.by_framework.get(framework);
            if before.map_or(names.is_empty(), |before| *before == names) {
                return false;
            }
            if names.is_empty() {
                named.by_framework.remove(framework);
            } else {
                named.by_framework.insert(framework.to_owned(), names);
            }
            true
        });
    }

    /// Another master listens, or the same one anew: it knows nothing, and says again who named what.
    pub fn new_session(&self) {
        self.0.send_modify(|named| {
            named.session += 1;
            named.by_framework.clear();
        });
    }
}

/// Starts looking. Ends when all [`Names`] are gone, or nobody takes the answers.
pub fn watch(
    looker: Arc<Looker>,
    mut meter: Meter,
    config: LocalityConfig,
    cost: LookCost,
) -> (Names, Answers) {
    let (names, mut named) = channel::channel(Named::default());
    let (sender, answers) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut schedule = Schedule::new(&config);
        loop {
            schedule.take(&named.borrow_and_update(), Instant::now());
            for news in schedule.news().chunks(MOST_ANSWERS) {
                if sender.send(news.to_vec()).await.is_err() {
                    return;
                }
            }
            match schedule.next(Instant::now()) {
                Next::Look(name) => {
                    let began = Instant::now();
                    let bandwidths;
                    (bandwidths, meter) = blocking(move || (meter.now(began), meter)).await;
                    // The same choice each time: what is news is then the data's and not the choice's.
                    let mut hasher = DefaultHasher::new();
                    name.hash(&mut hasher);
                    let access = looker.access(&name, &bandwidths, hasher.finish()).await;
                    let now = Instant::now();
                    schedule.looked(&name, access, now - began, now);
                    cost(now - began, schedule.known.len());
                }
                Next::Wait(until) => {
                    let changed = tokio::select! {
                        changed = named.changed() => changed,
                        () = until_then(until) => Ok(()),
                        () = sender.closed() => return,
                    };
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    });
    (Names(names), answers)
}

async fn until_then(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

/// Data sets that threads look at now.
static LOOKED_AT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Takes a data set off the list when its thread has ended.
struct Looking(String);

impl Looking {
    /// Not while another thread hangs there, nor where too many do.
    fn begin(name: &str) -> Option<Self> {
        let mut all = LOOKED_AT.lock().unwrap_or_else(PoisonError::into_inner);
        (all.len() < MOST_HANGING && all.insert(name.to_owned())).then(|| Self(name.to_owned()))
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        LOOKED_AT.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Looks at a data set on a thread of its own, and gives it up after `patience`. A thread that hangs in the kernel does not
/// keep the process from ending, as one of the runtime's would.
pub(super) async fn on_a_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T, LookError> + Send + 'static,
    patience: Duration,
) -> Result<T, LookError> {
    let looking = Looking::begin(name).ok_or(LookError::Stuck(patience))?;
    let (reply, answer) = oneshot::channel();
    let run = move || {
        let result = work();
        drop(looking);
        // Whoever waited may have given up.
        drop(reply.send(result));
    };
    let started = std::thread::Builder::new().name("locality".into()).spawn(run);
    started.map_err(|error| LookError::Io("start a thread", error))?;
    match tokio::time::timeout(patience, answer).await {
        Ok(Ok(result)) => result,
        _ => Err(LookError::Stuck(patience)),
    }
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    /// Look at this one.
    Look(String),
    /// Nothing, until then, or until something is named.
    Wait(Option<Instant>),
}

/// What is known of one data set.
#[derive(Clone, Debug)]
struct Known {
    now: Option<DataAccess>,
    told: Option<DataAccess>,
    due: Instant,
}

/// Decides what is looked at when, and what is told. Pure: `now` is an argument.
#[derive(Debug)]
struct Schedule {
    refresh: Duration,
    permille: u32,
    most: usize,
    news_percent: u32,
    session: u64,
    known: BTreeMap<String, Known>,
    /// Until then the budget is spent.
    paid_at: Option<Instant>,
}

impl Schedule {
    fn new(config: &LocalityConfig) -> Self {
        Self {
            refresh: Duration::from_millis(config.refresh_ms),
            permille: config.budget_permille.max(1),
            most: config.max_data_sets,
            news_percent: config.news_percent,
            session: 0,
            known: BTreeMap::new(),
            paid_at: None,
        }
    }

    /// Takes over what is named. Data sets beyond the bound are refused, those of frameworks that name many first.
    fn take(&mut self, named: &Named, now: Instant) {
        if named.session != self.session {
            self.session = named.session;
            self.known.values_mut().for_each(|known| known.told = None);
        }
        let (wanted, refused) = chosen(named, self.most);
        self.known.retain(|name, _| wanted.contains(name) || refused.contains(name));
        for name in wanted {
            let is_refusal = |known: &Known| known.now.as_ref().is_some_and(|a| a.error == self.refusal());
            if self.known.get(name).is_none_or(is_refusal) {
                let told = self.known.get(name).and_then(|known| known.told.clone());
                self.known.insert(name.clone(), Known { now: None, told, due: now });
            }
        }
        let refusal = self.refusal();
        for name in refused {
            let known = self.known.entry(name.clone()).or_insert(Known { now: None, told: None, due: now });
            known.now = Some(untold(name, &refusal));
        }
    }

    fn refusal(&self) -> String {
        format!("this agent looks at {} data sets at most (locality.max_data_sets)", self.most)
    }

    /// What is to be told, which then counts as told.
    fn news(&mut self) -> Vec<DataAccess> {
        let percent = self.news_percent;
        let fresh = self.known.values_mut().filter_map(|known| {
            let now = known.now.as_ref()?;
            if !is_news(known.told.as_ref(), now, percent) {
                return None;
            }
            known.told = Some(now.clone());
            known.told.clone()
        });
        fresh.collect()
    }

    fn next(&self, now: Instant) -> Next {
        let debt = self.paid_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let refusal = self.refusal();
        let looked_at = self.known.iter().filter(|(_, k)| k.now.as_ref().is_none_or(|a| a.error != refusal));
        let Some((name, known)) = looked_at.min_by_key(|(_, k)| (k.now.is_some(), k.due)) else {
            return Next::Wait(None);
        };
        // What is new may go before the budget, what is only old may not.
        let ahead = if known.now.is_none() { self.price(BURST) } else { Duration::ZERO };
        let affordable = now + debt.saturating_sub(ahead);
        let when = known.due.max(affordable);
        if when <= now { Next::Look(name.clone()) } else { Next::Wait(Some(when)) }
    }

    /// How long it takes until a look of this length is within the budget.
    fn price(&self, look: Duration) -> Duration {
        look.saturating_mul(1000) / self.permille
    }

    fn looked(&mut self, name: &str, access: DataAccess, took: Duration, now: Instant) {
        let from = self.paid_at.map_or(now, |at| at.max(now));
        self.paid_at = Some(from + self.price(took));
        let due = now + self.refresh;
        if let Some(known) = self.known.get_mut(name) {
            known.now = Some(access);
            known.due = due;
        }
    }
}

/// The names that are looked at, and those that are too many: each framework's first, then each one's second, and so on.
fn chosen(named: &Named, most: usize) -> (BTreeSet<&String>, BTreeSet<&String>) {
    let (mut wanted, mut refused) = (BTreeSet::new(), BTreeSet::new());
    let longest = named.by_framework.values().map(Vec::len).max().unwrap_or(0);
    for place in 0..longest {
        for name in named.by_framework.values().filter_map(|names| names.get(place)) {
            if wanted.len() < most || wanted.contains(name) {
                wanted.insert(name);
            } else {
                refused.insert(name);
            }
        }
    }
    (wanted, refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn config(max_data_sets: usize) -> LocalityConfig {
        LocalityConfig { max_data_sets, ..LocalityConfig::default() }
    }

    fn named(session: u64, frameworks: &[(&str, &[&str])]) -> Named {
        let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Named {
            session,
            by_framework: frameworks.iter().map(|(id, names)| ((*id).to_owned(), own(names))).collect(),
        }
    }

    fn access(name: &str, access_usec: u64) -> DataAccess {
        DataAccess { data_set: name.into(), access_usec, ..DataAccess::default() }
    }

    #[test]
    fn what_is_named_is_looked_at_at_once_told_once_and_refreshed_later() {
        let start = Instant::now();
        let mut schedule = Schedule::new(&config(10));
        assert_eq!(schedule.next(start), Next::Wait(None));
        let both = named(0, &[("f", &["/a", "/b"]), ("g", &["/b"])]);
        schedule.take(&both, start);
        for name in ["/a", "/b"] {
            assert_eq!(schedule.next(start), Next::Look(name.into()));
            schedule.looked(name, access(name, 5_000_000), SECOND / 1000, start);
        }
        assert_eq!(schedule.news().len(), 2);
        let Next::Wait(Some(until)) = schedule.next(start) else { panic!("nothing is due") };
        assert_eq!(until, start + 10 * SECOND);
        assert_eq!(schedule.next(until), Next::Look("/a".into()));
        schedule.looked("/a", access("/a", 5_100_000), SECOND / 1000, until);
        schedule.take(&both, until);
        assert_eq!(schedule.news(), [], "hardly another cost");
        schedule.looked("/b", access("/b", 9_000_000), SECOND / 1000, until);
        assert_eq!(schedule.news().len(), 1);
    }

    #[test]
    fn a_new_session_hears_everything_again_without_another_look() {
        let start = Instant::now();
        let mut schedule = Schedule::new(&config(10));
        schedule.take(&named(0, &[("f", &["/a"])]), start);
        schedule.looked("/a", access("/a", 1), SECOND / 1000, start);
        assert_eq!(schedule.news().len(), 1);
        schedule.take(&named(1, &[("f", &["/a"])]), start);
        assert_eq!(schedule.news().len(), 1);
        assert!(matches!(schedule.next(start), Next::Wait(Some(_))));
        schedule.take(&named(1, &[]), start);
        assert_eq!((schedule.news().len(), schedule.next(start)), (0, Next::Wait(None)), "forgotten");
    }

    #[test]
    fn looks_that_take_long_come_rarely() {
        let start = Instant::now();
        let mut schedule = Schedule::new(&config(10));
        schedule.take(&named(0, &[("f", &["/a"])]), start);
        schedule.looked("/a", access("/a", 1), SECOND, start);
        assert_eq!(
            schedule.next(start),
            Next::Wait(Some(start + 200 * SECOND)),
            "a second in 200 is 5 permille"
        );
        schedule.take(&named(0, &[("f", &["/a", "/b"])]), start);
        assert_eq!(schedule.next(start), Next::Look("/b".into()), "what is new is answered at once");
        schedule.looked("/b", access("/b", 1), 9 * SECOND, start);
        schedule.take(&named(0, &[("f", &["/a", "/b", "/c"])]), start);
        assert_eq!(
            schedule.next(start),
            Next::Wait(Some(start + 1000 * SECOND)),
            "unless it comes in masses"
        );
    }

    #[test]
    fn too_many_are_refused_fairly_and_taken_when_there_is_room() {
        let start = Instant::now();
        let mut schedule = Schedule::new(&config(2));
        schedule.take(&named(0, &[("greedy", &["/1", "/2", "/3"]), ("modest", &["/4"])]), start);
        let news = schedule.news();
        let refused: Vec<_> =
            news.iter().map(|a| (a.data_set.as_str(), a.error.contains("2 data sets"))).collect();
        assert_eq!(refused, [("/2", true), ("/3", true)]);
        for name in ["/1", "/4"] {
            assert_eq!(schedule.next(start), Next::Look(name.into()));
            schedule.looked(name, access(name, 1), SECOND / 1000, start);
        }
        assert!(matches!(schedule.next(start), Next::Wait(Some(_))));
        schedule.take(&named(0, &[("greedy", &["/2"])]), start);
        assert_eq!(schedule.next(start), Next::Look("/2".into()));
    }

    #[test]
    fn naming_the_same_again_wakes_nobody() {
        let (sender, mut receiver) = channel::channel(Named::default());
        let names = Names(sender);
        names.set("f", Vec::new());
        assert!(!receiver.has_changed().unwrap());
        names.set("f", vec!["/a".into()]);
        assert!(receiver.has_changed().unwrap());
        receiver.mark_unchanged();
        names.set("f", vec!["/a".into()]);
        assert!(!receiver.has_changed().unwrap());
        names.set("f", Vec::new());
        assert_eq!(*receiver.borrow_and_update(), Named::default());
    }

    #[tokio::test]
    async fn a_look_that_hangs_is_given_up() {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let hang = move || held.recv().map_err(|_| LookError::Missing);
        let error = on_a_thread("/hangs", hang, Duration::from_millis(10)).await.unwrap_err();
        assert!(matches!(error, LookError::Stuck(_)), "{error}");
        let again = on_a_thread("/hangs", || Ok(7), HANG).await.unwrap_err();
        assert!(matches!(again, LookError::Stuck(_)), "one thread hangs there already");
        assert_eq!(on_a_thread("/other", || Ok(7), HANG).await.unwrap(), 7);
        drop(release);
    }

    const HANG: Duration = Duration::from_secs(60);
}

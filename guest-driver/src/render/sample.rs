//! Receipts of banks and companies that do not exist, the same ones at every run.

use super::record::RawRecord;

/// The first `count` sample records. Each is a function of its number alone, so a longer list begins with the shorter one.
pub fn sample(count: u32) -> impl Iterator<Item = RawRecord> {
    (1..=count).map(record)
}

/// All sample receipts are of one day, about 1.7 a second at the most, so that serials and times rise together.
const SECONDS_OF_DAY: u32 = 86_400;

const ISSUER: (&str, &str) = ("海棠银行", "HAITANG BANK");

/// Not names of real banks; "示范" (demonstration) where a name might become one.
const BRANCHES: [&str; 8] = [
    "青梧示范银行临澜分行营业部",
    "云汀示范银行澄水支行",
    "望舒示范银行总行营业部",
    "海棠银行栖霞路支行",
    "Northmoor & Vale Bank, Harbour Branch",
    "Lindell Demonstration Bank, Main Office",
    "松烟示范银行东篱支行",
    "海棠银行白鹭洲支行",
];

const PLACES: [&str; 10] =
    ["临澜市", "云汀市", "澄水县", "松烟市", "东篱区", "白鹭洲", "听泉市", "鹿鸣县", "晚照市", "星河港"];
const MARKS: [&str; 12] =
    ["青禾", "远帆", "知微", "百川", "云杉", "一苇", "晨曜", "南枝", "石榴", "半夏", "拾光", "木兰"];
const TRADES: [&str; 10] = [
    "纸业",
    "精密仪器",
    "茶业",
    "国际物流",
    "生物科技",
    "食品",
    "文化传媒",
    "建筑工程",
    "医疗器械",
    "新材料",
];
const LATIN: [&str; 8] = [
    "Fernhollow Instruments Ltd.",
    "Bright & Quill Stationers",
    "Aldermere Shipping GmbH",
    "Café Étoile du Port S.à r.l.",
    "Wexcombe Paper Works plc",
    "Tarn & Fell Outdoor <Supplies> Ltd.",
    "Sablefield Optics Inc.",
    "O'Hollow Grain Merchants",
];
const PURPOSES: [&str; 10] = [
    "货款 Payment for goods, invoice INV-",
    "技术服务费 Service fee, contract C-",
    "办公用品采购 Office supplies, order PO-",
    "运输费 Freight, waybill W-",
    "房屋租金 Rent, agreement R-",
    "设备维护费 Maintenance, ticket T-",
    "会议费 Conference, booking B-",
    "退款 Refund, case RF-",
    "咨询费 Consulting, contract C-",
    "保证金 Deposit, tender TD-",
];
const BUSINESS: [&str; 4] =
    ["转账汇款 Transfer", "网银支付 Online payment", "代发业务 Batch payment", "实时汇款 Instant transfer"];

fn record(number: u32) -> RawRecord {
    let mut random = Random(u64::from(number));
    let seconds = 8 * 3600 + number.wrapping_mul(37) % (SECONDS_OF_DAY / 3);
    let (bank_name, bank_name_en) = ISSUER;
    let whole =
        10_u64.pow(random.below(7)) * u64::from(1 + random.below(9)) + u64::from(random.below(100_000));
    RawRecord {
        serial: format!("HT20261123{number:08}"),
        issued_at: format!("2026-11-23T{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
        bank_name: bank_name.to_owned(),
        bank_name_en: bank_name_en.to_owned(),
        currency: random.pick(&["CNY", "CNY", "CNY", "CNY", "CNY", "USD", "EUR", "HKD"]).to_owned(),
        amount: format!("{whole}.{:02}", random.below(100) * random.below(2)),
        payer_name: company(&mut random),
        payer_account: account(&mut random),
        payer_bank: format!(
            "{bank_name}{}支行",
            random.pick(&["栖霞路", "白鹭洲", "听泉", "星河港", "晚照"])
        ),
        payee_name: company(&mut random),
        payee_account: account(&mut random),
        payee_bank: random.pick(&BRANCHES).to_owned(),
        business: random.pick(&BUSINESS).to_owned(),
        purpose: format!("{}{:06}", random.pick(&PURPOSES), random.below(1_000_000)),
        remark: "样张：银行与当事人均为虚构。Specimen: the bank and the parties are fictitious.".to_owned(),
    }
}

fn company(random: &mut Random) -> String {
    if random.below(4) == 0 {
        return random.pick(&LATIN).to_owned();
    }
    format!("{}{}{}有限公司", random.pick(&PLACES), random.pick(&MARKS), random.pick(&TRADES))
}

/// 19 digits that begin with 9900: no issuer of real cards or accounts has that prefix.
fn account(random: &mut Random) -> String {
    format!(
        "9900 {:04} {:04} {:04} {:03}",
        random.below(10_000),
        random.below(10_000),
        random.below(10_000),
        random.below(1000)
    )
}

/// SplitMix64: a few lines, the same numbers everywhere.
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number from 0 to `limit` - 1. The bias is one in 2^32 and does not matter here.
    pub fn below(&mut self, limit: u32) -> u32 {
        let product = (self.bits() >> 32) * u64::from(limit);
        u32::try_from(product >> 32).unwrap_or_default()
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        let last = u32::try_from(list.len()).unwrap_or(u32::MAX);
        let at = usize::try_from(self.below(last)).unwrap_or_default();
        list.get(at).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::ReceiptRecord;
    use super::*;

    #[test]
    fn every_sample_is_a_valid_receipt_and_the_same_again() {
        for (first, second) in sample(2000).zip(sample(2000)) {
            assert_eq!(format!("{first:?}"), format!("{second:?}"));
            ReceiptRecord::try_from(first).unwrap();
        }
    }
}

//! How good answers are: perplexity, accuracy, F1, correlations, exact match. Pure functions of answers and truth.

/// `exp(loss)` of a mean loss per token (natural logarithm).
pub fn perplexity(mean_loss: f64) -> f64 {
    mean_loss.exp()
}

/// Share of answers that equal the truth; 0 without any.
pub fn accuracy<T: PartialEq>(answers: &[T], truth: &[T]) -> f64 {
    check_lengths(answers.len(), truth.len());
    let right = answers.iter().zip(truth).filter(|(answer, truth)| answer == truth).count();
    right as f64 / truth.len().max(1) as f64
}

/// F1 of one class: 2·TP / (2·TP + FP + FN). 0 where the class is neither answered nor true, as scikit-learn has it.
pub fn f1_of_class(answers: &[u32], truth: &[u32], class: u32) -> f64 {
    check_lengths(answers.len(), truth.len());
    let (mut both, mut either) = (0u64, 0u64);
    for (&answer, &truth) in answers.iter().zip(truth) {
        both += u64::from(answer == class && truth == class);
        either += u64::from(answer == class) + u64::from(truth == class);
    }
    if either == 0 { 0.0 } else { 2.0 * both as f64 / either as f64 }
}

/// F1 of the positive class, 1.
pub fn f1_binary(answers: &[u32], truth: &[u32]) -> f64 {
    f1_of_class(answers, truth, 1)
}

/// Mean F1 of all classes that are answered or true.
pub fn f1_macro(answers: &[u32], truth: &[u32]) -> f64 {
    let classes: std::collections::BTreeSet<u32> = answers.iter().chain(truth).copied().collect();
    let sum: f64 = classes.iter().map(|&class| f1_of_class(answers, truth, class)).sum();
    sum / classes.len().max(1) as f64
}

/// Pearson's correlation of two lists; `None` with fewer than two values, or where one list is constant.
pub fn pearson(answers: &[f64], truth: &[f64]) -> Option<f64> {
    check_lengths(answers.len(), truth.len());
    if answers.len() < 2 {
        return None;
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_a, mean_t) = (mean(answers), mean(truth));
    let (mut covariance, mut square_a, mut square_t) = (0.0, 0.0, 0.0);
    for (a, t) in answers.iter().zip(truth) {
        let (a, t) = (a - mean_a, t - mean_t);
        covariance += a * t;
        square_a += a * a;
        square_t += t * t;
    }
    let product = square_a * square_t;
    (product > 0.0).then(|| (covariance / product.sqrt()).clamp(-1.0, 1.0))
}

/// Spearman's rank correlation: Pearson's of the ranks, equal values sharing their mean rank.
pub fn spearman(answers: &[f64], truth: &[f64]) -> Option<f64> {
    pearson(&ranks(answers), &ranks(truth))
}

/// Whether an answer is exactly the expected one, white space at both ends aside.
pub fn exact_match(answer: &str, expected: &str) -> bool {
    answer.trim() == expected.trim()
}

/// Rank of each value from 1; equal values get the mean of the ranks they take together.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let same = order[start..].iter().take_while(|&&i| values[i] == values[order[start]]).count().max(1);
        let mean_rank = start as f64 + (same as f64 + 1.0) / 2.0;
        order[start..start + same].iter().for_each(|&i| ranks[i] = mean_rank);
        start += same;
    }
    ranks
}

fn check_lengths(answers: usize, truth: usize) {
    assert_eq!(answers, truth, "there is one answer for each true value");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }

    #[test]
    fn perplexity_of_a_uniform_guess_is_the_number_of_choices() {
        near(perplexity(0.0), 1.0);
        near(perplexity(320f64.ln()) / 320.0, 1.0);
    }

    #[test]
    fn accuracy_counts_equal_answers() {
        near(accuracy(&[1, 0, 2, 2], &[1, 1, 2, 0]), 0.5);
        near(accuracy::<u32>(&[], &[]), 0.0);
    }

    /// scikit-learn's own example: `f1_score([0,1,2,0,1,2], [0,2,1,0,0,1])`, macro 0.26666…, per class 0.8, 0, 0.
    #[test]
    fn f1_is_scikit_learns() {
        let (truth, answers) = ([0, 1, 2, 0, 1, 2], [0, 2, 1, 0, 0, 1]);
        near(f1_of_class(&answers, &truth, 0), 0.8);
        near(f1_of_class(&answers, &truth, 1), 0.0);
        near(f1_macro(&answers, &truth), 0.8 / 3.0);
        // 2 right of 3 answered and 4 true: precision 2/3, recall 1/2, F1 4/7.
        near(f1_binary(&[1, 1, 1, 0, 0, 0], &[1, 1, 0, 1, 1, 0]), 4.0 / 7.0);
        near(f1_binary(&[0, 0], &[0, 0]), 0.0);
        // One class only in the truth, one only among the answers: both count.
        near(f1_macro(&[0, 0], &[0, 1]), (2.0 / 3.0) / 2.0);
    }

    /// By hand: about their means of 3, Σxy = 8 and Σx² = Σy² = 10.
    #[test]
    fn pearson_matches_values_found_by_hand() {
        let x = [1.0, 2.0, 3.0, 4.0, 5.0];
        near(pearson(&x, &[2.0, 1.0, 4.0, 3.0, 5.0]).unwrap(), 0.8);
        near(pearson(&x, &[10.0, 8.0, 6.0, 4.0, 2.0]).unwrap(), -1.0);
        assert_eq!(pearson(&x, &[3.0; 5]), None);
        assert_eq!(pearson(&[1.0], &[1.0]), None);
    }

    /// The textbook example of IQ and hours of television: ρ = −29/165. With ties, by hand: the ranks 1, 2.5, 2.5, 4
    /// against 1, 2, 3, 4 give 4.5 / √(4.5 · 5).
    #[test]
    fn spearman_matches_textbook_values() {
        let iq = [106.0, 100.0, 86.0, 101.0, 99.0, 103.0, 97.0, 113.0, 112.0, 110.0];
        let hours = [7.0, 27.0, 2.0, 50.0, 28.0, 29.0, 20.0, 12.0, 6.0, 17.0];
        near(spearman(&iq, &hours).unwrap(), -29.0 / 165.0);
        near(spearman(&[1.0, 5.0, 5.0, 9.0], &[0.1, 0.2, 0.3, 0.4]).unwrap(), 4.5 / 22.5f64.sqrt());
        near(spearman(&[1.0, 10.0, 100.0], &[1.0, 2.0, 2.5]).unwrap(), 1.0);
    }

    #[test]
    fn exact_match_ignores_white_space_at_the_ends_only() {
        assert!(exact_match(" a b\n", "a b"));
        assert!(!exact_match("a  b", "a b") && !exact_match("A", "a"));
    }
}

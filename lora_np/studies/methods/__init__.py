"""What does each method learn, forget and cost?"""
